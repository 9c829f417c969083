{{- define "remora.name" -}}
{{- if contains "remora" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-remora" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "remora.etcd" -}}
{{ include "remora.name" . }}-etcd
{{- end }}

{{/* Labels of a component's objects: (list $ COMPONENT). */}}
{{- define "remora.labels" -}}
{{- $root := index . 0 -}}
{{ include "remora.selector" . }}
app.kubernetes.io/part-of: remora
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* What finds a component's pods; it must not change from one release to the next. */}}
{{- define "remora.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: remora
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image: (list $ NAME). */}}
{{- define "remora.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.registry }}{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* Pod Security `restricted`, and more: nothing can be written but what is mounted. */}}
{{- define "remora.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "remora.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "remora.authoritySecret" -}}
{{ .Values.identities.existingSecret | default (printf "%s-authority" (include "remora.name" .)) }}
{{- end }}

{{- define "remora.operatorSecret" -}}
{{ .Values.operator.existingSecret | default (printf "%s-operator" (include "remora.name" .)) }}
{{- end }}

{{/* What `remora up --store` gets. */}}
{{- define "remora.store" -}}
{{- if eq .Values.etcd.mode "Bundled" -}}
{{- $members := list -}}
{{- range $number := until (int .Values.etcd.bundled.replicas) -}}
{{- $members = append $members (printf "%s-%d.%s.%s.svc:2379" (include "remora.etcd" $) $number (include "remora.etcd" $) $.Release.Namespace) -}}
{{- end -}}
etcd://{{ join "," $members }}
{{- else -}}
{{- $tls := .Values.etcd.external.tls -}}
{{- $options := list -}}
{{- if $tls.existingSecret -}}
{{- $options = append $options "ca=/etc/remora/etcd/ca.crt" -}}
{{- if $tls.clientCertificate -}}
{{- $options = concat $options (list "cert=/etc/remora/etcd/tls.crt" "key=/etc/remora/etcd/tls.key") -}}
{{- end -}}
{{- if $tls.serverName -}}
{{- $options = append $options (printf "server-name=%s" $tls.serverName) -}}
{{- end -}}
{{- end -}}
etcd://{{ join "," .Values.etcd.external.endpoints }}{{ if $options }}?{{ join "&" $options }}{{ end }}
{{- end -}}
{{- end }}

{{- define "remora.keepsData" -}}
{{- if or (eq .Values.etcd.mode "External") .Values.etcd.bundled.storage.keep }}true{{ end -}}
{{- end }}
