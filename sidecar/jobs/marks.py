"""What is noted of a set after it was made: `marks.json` beside it, in each store that has the set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sidecar.errors import ObjectMissing, SidecarError
from sidecar.jobs.catalogue import answered, read_document
from sidecar.jobs.ownership import Claimant, admitted
from sidecar.sets import Marks, marks_key
from sidecar.stores.port import Store

# Only this process writes below a prefix; of its threads one at a time, or one would undo what another has noted.
_WRITING = threading.Lock()


def mark(store: Store, set_name: str, us: Claimant, change: Callable[[Marks], Marks]) -> Marks:
    """Change the marks of a set in one store, durably; as they are now. What this version does not know is kept.

    Raises OwnedByAnotherHost, OwnedByAnotherSidecar, StoreError, and SetInvalid where they are damaged.
    """
    with _WRITING:
        marks = _marks(store, set_name)
        changed = change(marks)
        if changed != marks:
            _require_ours(store, us)
            store.put(marks_key(set_name), changed.to_json())
        return changed


def keep(set_name: str, wanted: bool, stores: Mapping[str, Store], us: Claimant) -> dict[str, Any]:
    """Have a set kept from pruning, or not any more, in every store that has it; the object of `keep --json`.

    set_name: or `latest`. `errors`: the stores in which it could not be noted, or that did not answer. Raises NotFound,
    and an error when it could be noted in none.
    """
    catalogue = answered(stores)
    found = catalogue.find(set_name).set
    errors, noted = dict(catalogue.errors), []
    for name in catalogue.holders[found]:
        try:
            mark(stores[name], found, us, lambda marks: replace(marks, keep=wanted))
            noted.append(name)
        except SidecarError as error:
            errors[name] = error
    if not noted:
        raise next(iter(errors.values()))
    return {
        "set": found,
        "keep": wanted,
        "stores": noted,
        "errors": {
            name: {"code": error.code, "message": error.message, "hint": error.hint} for name, error in errors.items()
        },
    }


def _marks(store: Store, set_name: str) -> Marks:
    key = marks_key(set_name)
    try:
        return Marks.from_json(read_document(store, key), where=f"{store.location}/{key}")
    except ObjectMissing:
        return Marks()


def _require_ours(store: Store, us: Claimant) -> None:
    try:
        admitted(store, us)
    except ObjectMissing:
        return  # nobody claims it: sets that were copied there
