"""Tokens in a call's way (Envoy: extensions.filters.http.jwt_authn.v3).

A token is verified once and then remembered until it expires; a call whose header block was seen before pays a look-up in its plan and
a comparison of times. What is not believed is not remembered, so that nobody can push others' tokens out without having good ones.
"""

from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from sidecar.http2 import headers
from sidecar.policy import tokens as jwt
from sidecar.policy.tokens import Json, Key, Reason, Token, TokenFault
from sidecar.proxy.config import Route, VirtualHost
from sidecar.proxy.route import Request, match_holds
from sidecar.proxy.status import Status
from sidecar.proxy.step import Asked, Does, Filter, Step, Verdict
from sidecar.proxy.tokens import AllOf, AnyOf, Optional, Requirement, TokenOf, TokenProvider, Tokens
from sidecar.proxy.worker import Worker

if TYPE_CHECKING:
    from sidecar.proxy.call import Call
    from sidecar.proxy.decision import Plan

MAX_TOKENS: Final = 4096
"""Verified ones that are remembered by a filter; above that it begins anew."""
FLAG: Final = "JWT"
"""Of the answers; Envoy has no response flag for these."""
METADATA: Final = "envoy.filters.http.jwt_authn"
"""Under which name rules find the claims."""
LONGEST_REALM: Final = 256
"""Bytes of an address that an answer repeats."""
_FORBIDS: Final = frozenset((Reason.AUDIENCE, Reason.NO_RULE))
"""Why calls get PERMISSION_DENIED: who calls is known, or another token would not help."""
_PATH: Final = b":path"
_NO_VALUES: Final[dict[bytes, list[bytes]]] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a request a token is: a header, or a parameter of the query."""

    name: bytes
    is_parameter: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """A token, and where it was."""

    place: Place
    text: str


@dataclass(frozen=True, slots=True)
class Believed:
    """A token that is its provider's, as far as time and audience are left out."""

    token: Token
    provider: TokenProvider
    place: Place
    until_s: float
    """Unix time."""
    claims: Json
    """For rules."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What became of calls with one header block that may pass."""

    until_s: float
    """Unix time: the first of their tokens expires then."""
    verdict: str
    """For the metric."""
    before: Json
    """Claims that were known before."""
    claims: Json
    plan: "Plan"


class TokenFilter(Filter):
    """The providers of one configuration, and the tokens of theirs that were seen."""

    def __init__(self, config: Tokens, worker: Worker) -> None:
        super().__init__()
        self.config = config
        self.worker = worker
        self.providers = {provider.name: provider for provider in config.providers}
        self.keys: dict[str, tuple[Key, ...]] = {
            provider.name: jwt.read_keys(provider.keys) for provider in config.providers
        }
        self.made_headers = frozenset(name for provider in config.providers for name in provider.made_headers())
        self._believed: dict[tuple[str, Shown], Believed] = {}
        self.header_names = frozenset(match.name for rule in config.rules for match in rule.match.headers)
        read = {name for provider in config.providers for name, _ in provider.headers} | self.made_headers
        if any(provider.parameters for provider in config.providers):
            read.add(_PATH)
        self.value_names = frozenset(read)

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        needed, is_known = self._needed(request)
        return (
            TokenStep(self, request, needed, is_known)
            if needed is not None or self.made_headers or not is_known
            else None
        )

    def _needed(self, request: Request) -> tuple[Requirement | None, bool]:
        """What such a request must show; False: nobody knows."""
        here = self.config.route
        if here is not None:
            if not here.requirement:
                return None, True
            found = dict(self.config.named).get(here.requirement)
            return found, found is not None
        for rule in self.config.rules:
            if match_holds(rule.match, request):
                return rule.requires, True
        return None, True

    # -- tokens -------------------------------------------------------------------------------------------

    def judge(self, needed: Requirement, values: dict[bytes, list[bytes]], now: float) -> list[Believed]:
        """The tokens by which a call may pass. Raises TokenFault."""
        if isinstance(needed, TokenOf):
            provider = self.providers[needed.provider]
            shown = _shown(provider, values)
            if not shown:
                raise TokenFault(Reason.MISSING, f"no token was sent{_where(provider)}")
            audiences = provider.audiences if needed.audiences is None else needed.audiences
            return [self._believe(provider, item, audiences, now) for item in shown]
        if isinstance(needed, AllOf):
            return [item for part in needed.parts for item in self.judge(part, values, now)]
        if isinstance(needed, AnyOf):
            return self._any(needed.parts, values, now)
        assert isinstance(needed, Optional)
        return self._optional(needed, tuple(self.providers.values()), values, now)

    def _any(self, parts: tuple[Requirement, ...], values: dict[bytes, list[bytes]], now: float) -> list[Believed]:
        worst: TokenFault | None = None
        lenient: Optional | None = None
        for part in parts:
            if isinstance(part, Optional):
                lenient = part if lenient is None or part.takes_bad else lenient
                continue
            try:
                return self.judge(part, values, now)
            except TokenFault as fault:
                if worst is None or _weight(fault) > _weight(worst):
                    worst = fault
        if lenient is not None:
            named = {part.provider for part in parts if isinstance(part, TokenOf)}
            providers = tuple(item for name, item in self.providers.items() if not named or name in named)
            return self._optional(lenient, providers, values, now)
        raise worst or TokenFault(Reason.MISSING, "no token was sent")

    def _optional(
        self, needed: Optional, providers: tuple[TokenProvider, ...], values: dict[bytes, list[bytes]], now: float
    ) -> list[Believed]:
        found: dict[Shown, Believed] = {}
        failed: set[Shown] = set()
        for provider in providers:
            try:
                shown = _shown(provider, values)
            except TokenFault:
                if not needed.takes_bad:
                    raise
                continue
            for item in shown:
                if item in found or item in failed:
                    continue
                try:
                    owner = _owner(item, providers, values)
                    found[item] = self._believe(owner, item, owner.audiences, now)
                except TokenFault:
                    if not needed.takes_bad:
                        raise
                    failed.add(item)
        return list(found.values())

    def _believe(self, provider: TokenProvider, shown: Shown, audiences: tuple[str, ...], now: float) -> Believed:
        key = (provider.name, shown)
        known = self._believed.get(key)
        if known is not None:
            if known.until_s < now:
                del self._believed[key]
            provider.demands.check(known.token, now)
            jwt.check_audience(known.token, audiences)
            return known
        token = jwt.read(shown.text)
        provider.demands.check(token, now)
        jwt.check_audience(token, audiences)
        jwt.check_signature(token, self.keys[provider.name])
        known = Believed(token, provider, shown.place, provider.demands.last_s(token), _metadata(token, provider))
        if len(self._believed) >= MAX_TOKENS:
            self._believed.clear()
        self._believed[key] = known
        return known


class TokenStep(Step):
    """What calls of a kind must show."""

    def __init__(self, owner: TokenFilter, request: Request, needed: Requirement | None, is_known: bool) -> None:
        super().__init__()
        self._realm = _realm(request)
        self._owner = owner
        self._needed = needed
        self._is_known = is_known

    def enter(self, call: "Call") -> bool:
        plan = call.plan
        found = plan.notes.get(self) if plan.notes is not None else None
        passed = found if isinstance(found, Passed) else None
        if passed is None or passed.until_s < time() or passed.before is not call.claims:
            passed = self._pass(call, plan)
            if passed is None:
                return False
            if plan.notes is None:
                plan.notes = {}
            plan.notes[self] = passed
        if passed.verdict:
            self._owner.worker.stats.count_token(passed.verdict)
        call.plan = passed.plan
        call.claims = passed.claims
        return True

    def _pass(self, call: "Call", plan: "Plan") -> Passed | None:
        """What becomes of such a call; None: it was answered."""
        values = plan.values or _NO_VALUES
        try:
            found = self._believed(values)
        except TokenFault as fault:
            self._refuse(call, fault)
            return None
        claims = call.claims
        if found:
            own = _claims(found)
            claims = {**claims, **own} if claims else own
        until = min((item.until_s for item in found), default=float("inf"))
        verdict = "" if self._needed is None else "accepted" if found else "none"
        return Passed(until, verdict, call.claims, claims, _edited(plan, found, self._owner.made_headers))

    def foresee(self, asked: Asked) -> Verdict:
        if self._needed is None and self._is_known:
            return Verdict("tokens", Does.PASS, "no token is asked for")
        try:
            found = self._believed(asked.values)
        except TokenFault as fault:
            return Verdict("tokens", Does.REFUSE, f"{fault} (flag {FLAG})")
        if found:
            asked.claims.update(_claims(found))
        return Verdict("tokens", Does.PASS, "the token is good" if found else "a token may be missing")

    def _believed(self, values: dict[bytes, list[bytes]]) -> list[Believed]:
        """The tokens by which a call may pass. Raises TokenFault."""
        if not self._is_known:
            raise TokenFault(Reason.NO_RULE, "the route asks for a token by a requirement that is not configured")
        return self._owner.judge(self._needed, values, time()) if self._needed is not None else []

    def _refuse(self, call: "Call", fault: TokenFault) -> None:
        self._owner.worker.stats.count_token(fault.reason.value)
        challenge = b'Bearer realm="' + self._realm + b'"'
        if fault.reason is not Reason.MISSING:
            challenge += b', error="invalid_token"'
        field = headers.encode_field(b"www-authenticate", challenge)
        if fault.reason in _FORBIDS:
            status, http_status = Status.PERMISSION_DENIED, 403
        else:
            status, http_status = Status.UNAUTHENTICATED, 401
        if fault.reason is Reason.NO_RULE:
            field = b""
        call.answer(status, f"{fault} (flag {FLAG})", FLAG, http_status, field)


def _realm(request: Request) -> bytes:
    """Where a token is asked for: the address without the query, which may hold one."""
    [scheme] = request.headers.get(b":scheme", [b"http"])
    return (scheme + b"://" + request.authority + request.path).replace(b'"', b"%22")[:LONGEST_REALM]


# -- finding tokens ---------------------------------------------------------------------------------------


def _shown(provider: TokenProvider, values: dict[bytes, list[bytes]]) -> list[Shown]:
    """The tokens in all places of a provider. Raises TokenFault if a place has more than one."""
    found: list[Shown] = []
    for name, prefix in provider.headers:
        given = [value for value in values.get(name, ()) if value.startswith(prefix)]
        if not given:
            continue
        if len(values[name]) > 1:
            raise TokenFault(Reason.MALFORMED, f"{name.decode()} was sent more than once; which of them counts?")
        found.append(Shown(Place(name), given[0][len(prefix) :].strip().decode("latin-1")))
    query = values.get(_PATH, [b""])[0].partition(b"?")[2] if provider.parameters else b""
    if query:
        parts = [part.partition(b"=") for part in query.split(b"&")]
        for name in provider.parameters:
            texts = [value for own, _, value in parts if unquote_to_bytes(own) == name]
            if len(texts) > 1:
                raise TokenFault(Reason.MALFORMED, f"the parameter {name.decode()} was sent more than once")
            found += [Shown(Place(name, is_parameter=True), text.decode("latin-1")) for text in texts]
    return found


def _owner(shown: Shown, providers: tuple[TokenProvider, ...], values: dict[bytes, list[bytes]]) -> TokenProvider:
    """The provider of a token, by its issuer. Raises TokenFault if it has none."""
    issuer = jwt.read(shown.text).issuer
    here = [provider for provider in providers if shown in _shown(provider, values)]
    for wanted in (issuer, ""):
        for provider in here:
            if provider.demands.issuer == wanted:
                return provider
    raise TokenFault(Reason.ISSUER, f'the token is by "{issuer[: jwt.LONGEST_NAME]}", which is not known here')


def _where(provider: TokenProvider) -> str:
    """Where the tokens of a provider are expected, as a part of a sentence."""
    places = [f"{name.decode()}: {prefix.decode()}TOKEN" for name, prefix in provider.headers]
    return f" ({' or '.join(places)})" if places else ""


def _weight(fault: TokenFault) -> int:
    """How much a fault says: a bad token more than another's, and that more than none."""
    return {Reason.MISSING: 0, Reason.ISSUER: 1}.get(fault.reason, 2)


# -- what becomes of them ---------------------------------------------------------------------------------


def _metadata(token: Token, provider: TokenProvider) -> Json:
    found: Json = {}
    if provider.payload_key:
        payload = dict(token.payload)
        for name in provider.lists:
            if isinstance(payload.get(name), str):
                payload[name] = payload[name].split()
        found[provider.payload_key] = payload
    if provider.header_key:
        found[provider.header_key] = token.header
    return {METADATA: found}


def _claims(found: list[Believed]) -> Json:
    """The same object for the same token: by it access rules remember what they said."""
    if len(found) == 1:
        return found[0].claims
    return {METADATA: {key: value for item in found for key, value in item.claims[METADATA].items()}}


def _edited(plan: "Plan", found: list[Believed], made: frozenset[bytes]) -> "Plan":
    """The plan as the upstream is to get it: without tokens that stay here, with what is made of them and of nothing else."""
    values = plan.values or _NO_VALUES
    gone = {item.place.name for item in found if not item.provider.is_forwarded and not item.place.is_parameter}
    gone |= {name for name in made if name in values}
    parameters = {item.place.name for item in found if not item.provider.is_forwarded and item.place.is_parameter}
    added: dict[bytes, bytes] = {}
    for item in found:
        added.update(_made_of(item))
    if not gone and not added and not parameters:
        return plan
    block = []
    for field in headers.split(plan.block):
        name, whole = headers.name_of(field), field[1]
        if name == _PATH and parameters:
            whole = headers.encode_field(_PATH, _without(headers.value_of(field), parameters))
        if name not in gone and name not in added:
            block.append(whole)
    block += [headers.encode_field(name, value) for name, value in added.items()]
    left = {name: value for name, value in values.items() if name not in gone}
    left.update({name: [value] for name, value in added.items()})
    return plan.edited(b"".join(block), left)


def _made_of(item: Believed) -> dict[bytes, bytes]:
    provider, token = item.provider, item.token
    found: dict[bytes, bytes] = {}
    if provider.payload_header:
        raw = token.raw_payload.encode()
        found[provider.payload_header] = raw + b"=" * (-len(raw) % 4) if provider.pads_payload else raw
    for name, path in provider.claim_headers:
        text = jwt.written(jwt.claim(token.payload, path))
        if text is not None:
            found[name] = text.encode()
    return found


def _without(path: bytes, names: set[bytes]) -> bytes:
    bare, _, query = path.partition(b"?")
    left = [part for part in query.split(b"&") if unquote_to_bytes(part.partition(b"=")[0]) not in names]
    return bare + b"?" + b"&".join(left) if left else bare
