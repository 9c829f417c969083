// crdcheck says what a Kubernetes API server would: are these CustomResourceDefinitions valid, and is a resource one of theirs?
//
//	crdcheck CRD.yaml…                       exit 1 and one line for each fault of a definition
//	crdcheck -resources FILE CRD.yaml…       FILE: a JSON list of resources; standard output: a JSON list, for each its list of faults
//	crdcheck -objects FILE                   FILE: a JSON list of objects of Kubernetes' own kinds; the same answer: fields that are not
//	                                         known, values of a wrong type, and what a pod has that Pod Security "restricted" refuses
//
// The code that answers is the API server's own (k8s.io/apiextensions-apiserver, k8s.io/client-go, k8s.io/pod-security-admission):
// structural schemas, unknown fields, validation by schema, CEL rules with their cost.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	v1meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	psaapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

type definition struct {
	structural *schema.Structural
	validator  validation.SchemaValidator
	rules      *cel.Validator
}

func main() {
	objects := flag.String("objects", "", "JSON list of objects of Kubernetes' own kinds")
	resources := flag.String("resources", "", "JSON list of resources to validate")
	flag.Parse()
	scheme := runtime.NewScheme()
	install.Install(scheme)
	definitions := map[string]definition{}
	failed := false
	for _, path := range flag.Args() {
		faults, err := read(scheme, path, definitions)
		if err != nil {
			faults = append(faults, err.Error())
		}
		for _, fault := range faults {
			failed = true
			fmt.Fprintf(os.Stderr, "%s: %s\n", path, fault)
		}
	}
	if failed {
		os.Exit(1)
	}
	check := func(resource map[string]interface{}) []string { return faultsOf(resource, definitions) }
	path := *resources
	if *objects != "" {
		check, path = builtIn(), *objects
	}
	if path != "" {
		if err := answer(path, check); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
}

func read(scheme *runtime.Scheme, path string, definitions map[string]definition) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var external v1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &external); err != nil {
		return nil, err
	}
	scheme.Default(&external)
	var internal apiextensions.CustomResourceDefinition
	if err := scheme.Convert(&external, &internal, nil); err != nil {
		return nil, err
	}
	internal.Status.StoredVersions = []string{internal.Spec.Versions[0].Name}
	var faults []string
	for _, fault := range crdvalidation.ValidateCustomResourceDefinition(context.Background(), &internal) {
		faults = append(faults, fault.Error())
	}
	for _, version := range external.Spec.Versions {
		var props apiextensions.JSONSchemaProps
		if err := v1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &props, nil); err != nil {
			return faults, err
		}
		structural, err := schema.NewStructural(&props)
		if err != nil {
			return faults, err
		}
		validator, _, err := validation.NewSchemaValidator(&props)
		if err != nil {
			return faults, err
		}
		rules := cel.NewValidator(structural, true, celconfig.PerCallLimit)
		definitions[external.Spec.Group+"/"+version.Name+" "+external.Spec.Names.Kind] = definition{structural, validator, rules}
	}
	return faults, nil
}

func answer(path string, check func(map[string]interface{}) []string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var given []interface{}
	if err := utiljson.Unmarshal(text, &given); err != nil { // whole numbers stay whole
		return err
	}
	all := make([][]string, 0, len(given))
	for _, each := range given {
		resource, ok := each.(map[string]interface{})
		if !ok {
			return fmt.Errorf("%v is no object", each)
		}
		all = append(all, check(resource))
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

func faultsOf(resource map[string]interface{}, definitions map[string]definition) []string {
	found := []string{}
	name := fmt.Sprintf("%v %v", resource["apiVersion"], resource["kind"])
	known, ok := definitions[name]
	if !ok {
		return append(found, "no definition of "+name)
	}
	for _, path := range pruning.PruneWithOptions(resource, known.structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		found = append(found, path+": unknown field")
	}
	defaulting.Default(resource, known.structural)
	list := validation.ValidateCustomResource(nil, resource, known.validator)
	more, _ := known.rules.Validate(context.Background(), nil, known.structural, resource, nil, celconfig.RuntimeCELCostBudget)
	for _, fault := range append(list, more...) {
		found = append(found, fault.Error())
	}
	return found
}

// builtIn reads objects as a server with strict field validation does.
func builtIn() func(map[string]interface{}) []string {
	decoder := serializer.NewCodecFactory(clientscheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks())
	if err != nil {
		panic(err)
	}
	restricted := psaapi.LevelVersion{Level: psaapi.LevelRestricted, Version: psaapi.LatestVersion()}
	return func(resource map[string]interface{}) []string {
		found := []string{}
		text, err := json.Marshal(resource)
		if err != nil {
			return append(found, err.Error())
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			return append(found, err.Error())
		}
		if metadata, spec := podOf(object); spec != nil {
			for _, result := range evaluator.EvaluatePod(restricted, metadata, spec) {
				if !result.Allowed {
					found = append(found, "restricted: "+result.ForbiddenReason+": "+result.ForbiddenDetail)
				}
			}
		}
		return found
	}
}

func podOf(object runtime.Object) (*v1meta.ObjectMeta, *corev1.PodSpec) {
	switch each := object.(type) {
	case *corev1.Pod:
		return &each.ObjectMeta, &each.Spec
	case *appsv1.Deployment:
		return &each.Spec.Template.ObjectMeta, &each.Spec.Template.Spec
	case *appsv1.StatefulSet:
		return &each.Spec.Template.ObjectMeta, &each.Spec.Template.Spec
	case *appsv1.DaemonSet:
		return &each.Spec.Template.ObjectMeta, &each.Spec.Template.Spec
	case *batchv1.Job:
		return &each.Spec.Template.ObjectMeta, &each.Spec.Template.Spec
	case *batchv1.CronJob:
		return &each.Spec.JobTemplate.Spec.Template.ObjectMeta, &each.Spec.JobTemplate.Spec.Template.Spec
	}
	return nil, nil
}
