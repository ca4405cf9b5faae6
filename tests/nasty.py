"""Nasty errors: their methods raise or return wrong values, and groups can be deep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from hypothesis import strategies as st

#: What a method of a nasty error does instead of its job.
DEEDS: Final = (
    "raises ValueError",
    "raises itself",
    "raises GeneratorExit",
    "raises KeyboardInterrupt",
    "returns a number",
    "returns None",
    "returns a strange text",
    "returns a long text",
)

#: What Python, Trio or a log calls or reads on an error.
QUESTIONS: Final = ("__str__", "__repr__", "__bool__", "__len__", "__eq__", "__hash__")
PROPERTIES: Final = (
    "__cause__", "__context__", "__suppress_context__", "__traceback__", "__class__",
    "__notes__", "add_note", "with_traceback", "args", "message",
    "errno", "strerror", "exceptions", "split", "subgroup", "derive",
)  # fmt: skip


class StrangeText(str):
    """A ``str`` whose methods all raise."""

    __slots__ = ()

    def __getitem__(self, _: Any) -> str:
        raise ValueError

    def __len__(self) -> int:
        raise ValueError

    def __str__(self) -> str:
        raise ValueError

    def __format__(self, _: str) -> str:
        raise ValueError

    def __bool__(self) -> bool:
        raise ValueError


def _method(deed: str) -> Callable[..., Any]:
    def act(self: Any, *_: Any) -> Any:
        match deed:
            case "raises ValueError":
                raise ValueError
            case "raises itself":
                raise self
            case "raises GeneratorExit":
                raise GeneratorExit
            case "raises KeyboardInterrupt":
                raise KeyboardInterrupt
            case "returns a number":
                return 7
            case "returns None":
                return None
            case "returns a strange text":
                return StrangeText("\x1b[31m")
            case _:
                return "x" * 50_000

    return act


def make(base: type[BaseException], deeds: dict[str, str], *args: Any) -> BaseException:
    """An error derived from ``base`` whose methods do these deeds."""
    members: dict[str, Any] = {}
    for name, deed in deeds.items():
        is_asked = name in PROPERTIES[: PROPERTIES.index("split")]
        members[name] = property(_method(deed)) if is_asked else _method(deed)
    if issubclass(base, BaseExceptionGroup):
        message, inside = args
        args = message, [e for e in inside if _can_be_in_a_group(e)] or [ValueError()]
    metaclass: Any = type(base)
    kind = metaclass("Nasty", (base,), members)
    made: BaseException = kind(*args)
    return made


def _can_be_in_a_group(error: BaseException) -> bool:
    try:
        _ = BaseExceptionGroup("to try", [error])
    except BaseException:  # noqa: ASYNC103 - its class can be hidden
        return False  # noqa: ASYNC104
    return True


def deep(error: BaseException, depth: int = 2_000) -> BaseException:
    """A group in a group in a group."""
    error = make(BaseExceptionGroup, {}, "deep", [error])
    for _ in range(depth - 1):
        error = BaseExceptionGroup("deep", [error])
    return error


def round_about(first: BaseException, second: BaseException) -> BaseException:
    """Make each the context and the cause of the other."""
    for one, other in ((first, second), (second, first)):
        BaseException.__dict__["__context__"].__set__(one, other)
        BaseException.__dict__["__cause__"].__set__(one, other)
    return first


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make a nasty error. Hypothesis can't draw one: it inspects its draws."""

    base: type[BaseException]
    deeds: dict[str, str]
    inside: tuple[Recipe, ...] = ()
    twist: str = ""

    def make(self) -> BaseException:
        args = ("nasty", [each.make() for each in self.inside]) if self.inside else ()
        error = make(self.base, self.deeds, *args)
        match self.twist:
            case "deep":
                return deep(error)
            case "round about":
                return round_about(error, make(self.base, self.deeds, *args))
            case _:
                return error


def errors(*kinds: type[BaseException]) -> st.SearchStrategy[Recipe]:
    """Nasty errors of these kinds, and groups and chains of them."""
    deeds = st.dictionaries(
        st.sampled_from(QUESTIONS + PROPERTIES), st.sampled_from(DEEDS), max_size=4
    )
    twist = st.sampled_from(["", "", "deep", "round about"])
    single = st.builds(Recipe, st.sampled_from(kinds), deeds, twist=twist)
    return st.recursive(
        single,
        lambda inner: st.builds(
            Recipe,
            st.just(BaseExceptionGroup),
            deeds,
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            twist,
        ),
        max_leaves=4,
    )
