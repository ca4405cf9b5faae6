"""Discovery: keep the targets of a proxy as files and name servers list them.

Files, names and records in, lists of targets out. If one can't be read, what it said
before stays in use. This module does not know which target a connection gets.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

import trio

from ._address import Address, TcpAddress, address_in
from ._describe import escape
from ._endpoints import Endpoints
from ._file_state import state_of
from ._names import look_up
from ._target_lists import AddressRecords, Given, SrvRecords, TargetFile, TargetList
from ._targets import Target, target_at
from ._task_set import TaskSet

logger = logging.getLogger("trioserve.targets")

#: Seconds between two looks at a file, and at the answer for a name. That is asked for
#: anew when it is 8 seconds old; see :mod:`._names`.
_INTERVAL: Final = 1.0

#: Records are asked for again after at least this many seconds, whatever their TTL
#: is, and after this many seconds if there were none.
_LEAST_TTL: Final = 1.0
_RETRY: Final = 5.0


class Discovery:
    """The targets of one proxy, as they are now.

    Args:
      given: what the proxy was given.

    Raises:
      ValueError: a file can't be used; the message names it.
    """

    def __init__(self, given: Iterable[Given]) -> None:
        self._given = [_source_of(each) for each in given]
        self._files = [each for each in self._given if isinstance(each, _File)]
        self._records = [each for each in self._given if isinstance(each, _Records)]
        self._names: dict[Target, _Name] = {}
        self._note_names()
        self._tasks: TaskSet[_Followed] | None = None
        self._ask_again = trio.Event()

    @property
    def has_lists(self) -> bool:
        """Whether there are files or records, which :meth:`reload` reads again."""
        return bool(self._files or self._records)

    @property
    def can_change(self) -> bool:
        """Whether there is something to follow."""
        return bool(self.has_lists or self._names)

    @property
    def targets(self) -> list[Target]:
        """All targets that are known, in the order of what was given.

        A name whose addresses are not known yet is one target.
        """
        return [
            target
            for listed in self._listed()
            for target in self._addresses_of(listed) or [listed]
        ]

    @property
    def origins(self) -> dict[Target, object]:
        """What lists each of the targets that were not given by themselves."""
        lists = [*self._files, *self._records, *self._names.values()]
        return {target: each.given for each in lists for target in each.targets}

    def _addresses_of(self, listed: Target) -> Sequence[Target]:
        return self._names[listed].targets if listed in self._names else ()

    def _listed(self) -> list[Target]:
        listed = list[Target]()
        for each in self._given:
            listed += [each] if isinstance(each, Target) else each.targets
        return listed

    def _note_names(self) -> None:
        """Note which names there are of which each address is a target."""
        names = [each for each in self._listed() if each.each_address]
        known = {each.address: each.targets for each in self._names.values()}
        self._names = {
            each: self._names.get(each) or _Name(each, known) for each in names
        }

    async def run(self, endpoints: Endpoints) -> None:
        """Follow the files, names and records, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                follow = functools.partial(self._follow, endpoints)
                self._tasks = TaskSet(nursery, follow, lambda each: each.task_name)
                self._set_tasks()
                while True:
                    for file in self._files:
                        if file.has_changed():
                            self._take(file, file.read, endpoints)
                    await trio.sleep(_INTERVAL)
        finally:
            self._tasks = None

    def _set_tasks(self) -> None:
        if self._tasks is not None:
            self._tasks.follow([*self._records, *self._names.values()])

    def reload(self, endpoints: Endpoints) -> None:
        """Read all files now, ask for all records, and log what comes of it."""
        for file in self._files:
            self._take(file, file.read, endpoints, is_asked=True)
        self._ask_again.set()
        self._ask_again = trio.Event()

    async def _follow(self, endpoints: Endpoints, source: _Followed) -> NoReturn:
        while True:
            seconds, ask_again = _RETRY, self._ask_again
            try:
                read, seconds = await source.look_up()
            except OSError as error:
                self._note_error(source, error, endpoints)
            else:
                if read is not None:
                    self._take(source, read, endpoints)
            with trio.move_on_after(seconds):
                await ask_again.wait()

    def _note_error(
        self, source: _Followed, error: OSError, endpoints: Endpoints
    ) -> None:
        """Note that a look-up has failed, and log it once."""
        if isinstance(source, _Name):
            return  # connections have the error, if no address is known
        source.note(f"{source.text}: {error.strerror}", is_asked=False)
        if all(each.error is not None for each in self._records):
            endpoints.are_missing(error)

    def _take(
        self,
        source: _Source,
        read: Callable[[], Sequence[Target]],
        endpoints: Endpoints,
        *,
        is_asked: bool = False,
    ) -> None:
        """Take a list, and log what has changed; nothing, if it can't be used."""
        targets, names = source.targets, self._names
        try:
            source.targets = read()
            self._note_names()
            now = trio.current_time()
            new, gone = endpoints.replace(self.targets, now, self.origins)
        except ValueError as error:
            source.targets, self._names = targets, names
            source.note(str(error), is_asked=is_asked)
            return
        source.error = None
        self._set_tasks()
        count = len(source.targets)
        said = f"{count} target{'s' if count > 1 else ''} now"
        logger.info("%s has %s: %d new, %d gone", source.text, said, new, gone)


class _Source:
    """Where a list of targets comes from.

    Attributes:
      given: what the proxy was given.
      text: the same, safe in a log.
      targets: the last list that could be used.
      error: why the last one could not be used; None if it could.
    """

    def __init__(self, given: Target | TargetList, text: str) -> None:
        self.given = given
        self.text = escape(text)
        self.targets: Sequence[Target] = ()
        self.error: str | None = None

    def note(self, error: str, *, is_asked: bool) -> None:
        """Note why the last list can't be used; log it once, unless somebody asked."""
        before, self.error = self.error, escape(error)
        if is_asked or self.error != before:
            kept = "; the targets of before stay in use until that is mended"
            logger.warning("%s%s", self.error, kept if self.targets else "")


class _File(_Source):
    """A file of targets."""

    def __init__(self, file: TargetFile) -> None:
        super().__init__(file, str(file))
        self._file = file
        self.targets = self.read()

    def has_changed(self) -> bool:
        """Whether it has to be read: also if it could not be used the last time."""
        return self.error is not None or self._state != state_of(Path(self._file.path))

    def read(self) -> Sequence[Target]:
        # If it changes while it is read, the next look sees another state.
        self._state = state_of(Path(self._file.path))
        return self._file.read()


class _Records(_Source):
    """Records of name servers."""

    def __init__(self, records: SrvRecords | AddressRecords) -> None:
        super().__init__(records, str(records))
        self._records = records
        self.task_name = f"trioserve records of {self.text}"

    async def look_up(self) -> tuple[_Read | None, float]:
        """What reads the list if it has changed, and seconds until the next look-up."""
        targets, seconds = await self._records.look_up()
        seconds = max(seconds, _LEAST_TTL)
        if set(targets) == set(self.targets) and self.error is None:
            return None, seconds
        return (lambda: targets), seconds


class _Name(_Source):
    """A name of which each address is a target.

    Args:
      known: the targets of names that were listed before, maybe with another weight.
    """

    def __init__(
        self, target: Target, known: Mapping[TcpAddress, Sequence[Target]]
    ) -> None:
        assert isinstance(target.address, TcpAddress)
        super().__init__(target, str(target.address))
        self.target, self.address = target, target.address
        self.task_name = f"trioserve addresses of {self.text}"
        self.targets = self._at([t.address for t in known.get(target.address, ())])

    async def look_up(self) -> tuple[_Read | None, float]:
        """What reads the list if it has changed, and seconds until the next look-up."""
        texts = [info.text for info in await look_up(self.address)]
        found = [address for text in texts if (address := address_in(text))]
        before = [each.address for each in self.targets]
        if set(found) == set(before):
            return None, _INTERVAL  # name servers often change the order only
        # Those that stay keep their places.
        ordered = [each for each in before if each in found]
        ordered += [each for each in found if each not in before]
        return functools.partial(self._at, ordered), _INTERVAL

    def _at(self, addresses: Sequence[Address]) -> Sequence[Target]:
        return [target_at(each, self.target) for each in addresses]


#: Reads a list of targets.
_Read: TypeAlias = Callable[[], Sequence[Target]]

_Followed: TypeAlias = _Records | _Name


def _source_of(given: Given) -> _File | _Records | Target:
    match given:
        case TargetFile():
            return _File(given)
        case SrvRecords() | AddressRecords():
            return _Records(given)
        case _:
            return given
