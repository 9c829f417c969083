"""Access rules in a call's way: decided once per distinct header block, or once per block and caller; a call then pays one look-up."""

from typing import TYPE_CHECKING, Final

from sidecar.proxy.access import Access, AccessRules, Caller, Claims, Ruling
from sidecar.proxy.config import Route, VirtualHost
from sidecar.proxy.route import Request
from sidecar.proxy.status import Status
from sidecar.proxy.step import Asked, Does, Filter, Step, Verdict
from sidecar.proxy.worker import Worker
from sidecar.telemetry.stats import AccessStats

if TYPE_CHECKING:
    from sidecar.proxy.call import Call

MAX_CALLERS: Final = 1024
"""Peers, with what is claimed of them, whose rulings are remembered for a step."""
FLAG: Final = "RBAC"
"""Of the answers; Envoy has no response flag for these."""


class AccessFilter(Filter):
    """Rules in force (Envoy: extensions.filters.http.rbac.v3.RBAC)."""

    def __init__(self, config: Access, worker: Worker) -> None:
        super().__init__()
        self.config = config
        self.worker = worker
        self.stats = worker.stats.of_access(config.stat_prefix)
        self.shadow_stats = worker.stats.of_access(config.shadow_prefix or config.stat_prefix)
        every = (config.rules, config.shadow)
        self.header_names = frozenset(name for rules in every if rules is not None for name in rules.headers())

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        if self.config.rules is None and self.config.shadow is None:
            return None
        return AccessStep(self, request)


class AccessStep(Step):
    """The rules for requests with one header block."""

    def __init__(self, owner: AccessFilter, request: Request) -> None:
        super().__init__()
        self._owner = owner
        self._request = request
        config = owner.config
        self._ruling = self._known(config.rules)
        self._shadow = self._known(config.shadow)
        self._is_settled = (config.rules is None or self._ruling is not None) and (
            config.shadow is None or self._shadow is not None
        )
        self._remembered: dict[tuple[Caller, int], tuple[Ruling | None, Ruling | None, Claims]] = {}
        """By caller and by identity of what is claimed of it, which is held."""

    def _known(self, rules: AccessRules | None) -> Ruling | None:
        return rules.decide(self._request, None, {}) if rules is not None else None

    def enter(self, call: "Call") -> bool:
        ruling, shadow = self._ruling, self._shadow
        if not self._is_settled:
            ruling, shadow = self._of_caller(call.down.caller, call.claims)
        owner = self._owner
        if shadow is not None:
            _count_shadow(owner.shadow_stats, shadow)
        if ruling is None:
            return True
        if ruling.is_allowed:
            owner.stats.allowed += 1
            return True
        owner.stats.denied += 1
        call.answer(Status.PERMISSION_DENIED, self._sentence(ruling, call.down.caller), FLAG, 403)
        return False

    def _of_caller(self, caller: Caller, claims: Claims) -> tuple[Ruling | None, Ruling | None]:
        key = (caller, id(claims))
        known = self._remembered.get(key)
        if known is None:
            config = self._owner.config
            ruling = config.rules.decide(self._request, caller, claims) if config.rules is not None else None
            shadow = config.shadow.decide(self._request, caller, claims) if config.shadow is not None else None
            if len(self._remembered) >= MAX_CALLERS:
                self._remembered.clear()
            known = self._remembered[key] = (ruling, shadow, claims)
        return known[0], known[1]

    def foresee(self, asked: Asked) -> Verdict:
        config = self._owner.config
        kind = "access"
        rules, shadow = config.rules, config.shadow
        ruling = rules.decide(self._request, asked.caller, asked.claims) if rules is not None else None
        trial = shadow.decide(self._request, asked.caller, asked.claims) if shadow is not None else None
        if ruling is not None and not ruling.is_allowed:
            return Verdict(kind, Does.REFUSE, self._sentence(ruling, asked.caller))
        if trial is not None and not trial.is_allowed:
            return Verdict(kind, Does.WOULD_REFUSE, self._sentence(trial, asked.caller))
        by = [each.policy for each in (ruling, trial) if each is not None and each.policy]
        return Verdict(kind, Does.PASS, f'policy "{by[0]}" allows it' if by else "no policy denies it")

    def _sentence(self, ruling: Ruling, caller: Caller) -> str:
        """What a refused caller reads: the policy, and as whom it was seen."""
        seen = ", ".join(filter(None, caller.names)) or "nobody (it showed no certificate)"
        path = self._request.path.decode("latin-1")
        why = f'policy "{ruling.policy}" denies it' if ruling.policy else "no policy allows it"
        return f"access denied: {why}; the caller is seen as {seen}, the call is {path} (flag {FLAG})"


def _count_shadow(stats: AccessStats, shadow: Ruling) -> None:
    if shadow.is_allowed:
        stats.shadow_allowed += 1
    else:
        stats.shadow_denied += 1
