from __future__ import annotations

from trioserve import Outcome
from trioserve.app.output._formats import as_logfmt


def test_logfmt_quotes_only_where_needed() -> None:
    record = {
        "plain": "a-b:1",
        "words": 'say "x"',
        "line": "a\nb\x1b",
        "empty": "",
        "none": None,
        "yes": True,
        "float": 0.5,
        "endless": float("inf"),
        "whole": 3,
        "outcome": Outcome.OK,
        "nothing": [],
        "list": [{"a b": "c"}],
        "notes": {"user name": "é=1", "other": object},
    }
    assert as_logfmt(record) == (
        r'plain=a-b:1 words="say \"x\"" line="a\nb\u001b" empty="" none=null'
        r" yes=true float=0.5 endless=Infinity whole=3 outcome=ok"
        r' nothing="[]" list="[{\"a b\": \"c\"}]" notes.user_name="\u00e9=1"'
        " notes.other=\"<class 'object'>\""
    )
