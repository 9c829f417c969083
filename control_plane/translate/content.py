"""Resources of one type as values that nodes share: what two of them differ in is known, and their bytes are put together once.

`Shared` is what many nodes have in common, `Content` what one of them is to have: the part of a `Shared` that it asks for, and a few
resources of its own. Neither is ever edited. `Shared.replaced` gives the next of its line, which remembers what it changed, so that the
difference of two of a line costs what changed and not what there is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import lru_cache
from hashlib import blake2b
from typing import Final, TypeVar, overload

LOG: Final = 256
"""Changes that a line remembers; who is further behind is compared in full."""
MAX_BODIES_BYTES: Final = 16 * 1024 * 1024
"""Of the bytes that one `Shared` keeps put together; above that it begins anew."""
NO_NAMES: Final[frozenset[str]] = frozenset()

Form = Callable[[str, bytes], bytes]
"""How a resource stands in a response: from its name and bytes. A constant: bytes are remembered by its identity."""
T = TypeVar("T")


class Shared:
    """Resources by name, one of a line of versions."""

    __slots__ = ("_age", "_bodies", "_bodies_bytes", "_line", "_log", "items", "names")

    def __init__(self, items: dict[str, bytes]) -> None:
        self.items = items
        self.names = frozenset(items)
        """The same object as long as no name comes or goes."""
        self._line = object()
        self._age = 0
        self._log: tuple[frozenset[str], ...] = ()
        self._bodies: dict[tuple[Form, frozenset[str]], bytes] = {}
        self._bodies_bytes = 0

    def replaced(self, changes: Mapping[str, bytes | None]) -> "Shared":
        """The next of the line, with these resources put, or taken out (None); itself if they change nothing."""
        real = {name: data for name, data in changes.items() if self.items.get(name) != data}
        if not real:
            return self
        items = self.items.copy()
        for name, data in real.items():
            if data is None:
                del items[name]
            else:
                items[name] = data
        fresh = Shared.__new__(Shared)
        fresh.items = items
        is_same_names = len(items) == len(self.items) and all(name in self.items for name in real)
        fresh.names = self.names if is_same_names else frozenset(items)
        fresh._line, fresh._age = self._line, self._age + 1
        fresh._log = (*self._log, frozenset(real))[-LOG:]
        fresh._bodies, fresh._bodies_bytes = {}, 0
        return fresh

    def since(self, old: "Shared") -> Set[str] | None:
        """The names that may differ from an older one of the line; None if that is not known."""
        if old is self:
            return NO_NAMES
        behind = self._age - old._age
        if self._line is not old._line or not 0 < behind <= len(self._log):
            return None
        return self._log[-1] if behind == 1 else NO_NAMES.union(*self._log[-behind:])

    def body(self, form: Form, names: frozenset[str]) -> bytes:
        """These resources (all must be there) as they stand in a response, in order of name."""
        found = self._bodies.get((form, names))
        if found is None:
            found = encoded(form, {name: self.items[name] for name in names})
            if self._bodies_bytes + len(found) > MAX_BODIES_BYTES:
                self._bodies, self._bodies_bytes = {}, 0
            self._bodies[form, names] = found
            self._bodies_bytes += len(found)
        return found


class Content(Mapping[str, bytes]):
    """What one node is to have of a type."""

    __slots__ = ("names", "own", "shared")

    def __init__(self, shared: Shared, own: Mapping[str, bytes], names: frozenset[str] | None = None) -> None:
        self.shared = shared
        self.own = own
        """The node's own resources; they go before shared ones of the same name."""
        self.names = names
        """What it asks for; None for all."""

    @overload
    def get(self, name: str, /) -> bytes | None: ...
    @overload
    def get(self, name: str, default: bytes | T, /) -> bytes | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        if self.names is not None and name not in self.names:
            return default
        found = self.own.get(name)
        return self.shared.items.get(name, default) if found is None else found

    def __getitem__(self, name: str) -> bytes:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return (self.names is None or name in self.names) and (name in self.own or name in self.shared.items)

    def __iter__(self) -> Iterator[str]:
        if self.names is not None:
            return iter([name for name in self.names if name in self.own or name in self.shared.items])
        if not self.own:
            return iter(self.shared.items)
        return iter(dict.fromkeys((*self.shared.items, *self.own)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def part(self, names: frozenset[str] | None) -> "Content":
        """Of all of it, only these names."""
        return self if names is self.names else Content(self.shared, self.own, names)

    def since(self, old: Mapping[str, bytes]) -> Set[str]:
        """The names that differ from what a node has: put, changed, or gone."""
        if old is self:
            return NO_NAMES
        maybe = self._maybe(old) if isinstance(old, Content) else None
        if maybe is None:
            maybe = self.keys() | old.keys()
        return {name for name in maybe if self.get(name) != old.get(name)} if maybe else NO_NAMES

    def _maybe(self, old: "Content") -> Set[str] | None:
        """The names that may differ; None if that is not known."""
        maybe = self.shared.since(old.shared)
        if maybe is None:
            return None
        if self.own is not old.own:
            maybe = maybe | self.own.keys() | old.own.keys()
        if self.names is not old.names and self.names != old.names:
            if self.names is None or old.names is None:
                return None
            maybe = maybe | (self.names ^ old.names)
        return maybe

    def body(self, form: Form, names: Set[str]) -> bytes:
        """These resources (all must be there) as they stand in a response."""
        own = {name: self.own[name] for name in names if name in self.own} if self.own else {}
        shared = frozenset(names) if not own else frozenset(names - own.keys())
        return self.shared.body(form, shared) + encoded(form, own)

    def whole_body(self, form: Form) -> bytes:
        """All of it as it stands in a response."""
        if self.names is None and not self.own.keys() & self.shared.items.keys():
            return self.shared.body(form, self.shared.names) + encoded(form, self.own)
        return self.body(form, self.keys())

    def covers(self, named: Mapping[str, bytes], asked: frozenset[str]) -> bool:
        """True if of all that is here by a name of `named`, the name is among those that were asked for."""
        if not isinstance(named, Content) or named.names is not None or self.own:
            return all(name in asked for name in named if name in self)
        return _is_covered(self.shared.names, named.shared.names, asked) and all(
            name in asked for name in named.own if name in self
        )


@lru_cache(1024)
def _is_covered(here: frozenset[str], named: frozenset[str], asked: frozenset[str]) -> bool:
    # Nodes share the three sets, so that this is found by identity, not by a look at a thousand names.
    return here & named <= asked


NOTHING: Final = Content(Shared({}), {})


def of(items: Mapping[str, bytes]) -> Content:
    """Resources that stand alone."""
    return items if isinstance(items, Content) else Content(Shared(dict(items)), {})


def encoded(form: Form, items: Mapping[str, bytes]) -> bytes:
    """Resources as they stand in a response, in order of name."""
    return b"".join(form(name, items[name]) for name in sorted(items))


def version(data: bytes) -> str:
    """Of a resource with these bytes: a hash, so that all replicas give the same."""
    return blake2b(data, digest_size=8).hexdigest()


# -- the protobuf encoding, as far as it is needed to put messages together from bytes -----------------


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, a string or a message."""
    size, head = len(value), bytearray((number << 3 | 2,))
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + value


def fields(number: int, values: Iterable[bytes]) -> bytes:
    """A repeated field."""
    return b"".join(field(number, value) for value in values)
