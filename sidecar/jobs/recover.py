"""Put right what a killed run left in the stores: uploads under way, and sets without a manifest.

Whatever it froze is thawed first, by `sidecar.engine.recovery`. Only a prefix whose owner.json names this engine, and
no other sidecar that runs, is touched, and only sets that have no manifest: they do not exist, and only cost money.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from sidecar import sets
from sidecar.errors import ObjectMissing, OwnedByAnotherSidecar, StoreError
from sidecar.events import Emit
from sidecar.jobs.ownership import Claimant, claim, is_ours
from sidecar.stores.port import Store

_OURS = "backup-"


def sweep(store: Store, us: Claimant, emit: Emit, now: datetime) -> bool:
    """Abort uploads and remove half sets that an earlier process of ours left. Nothing may be running.

    A prefix that another sidecar has left becomes ours with that, so that whoever starts next finds us there.

    False when the store did not answer: emits `store_failed`. Raises OwnedByAnotherSidecar, and no other StoreError.
    """
    try:
        if not is_ours(store, us):
            return True
        claim(store, us, now, emit)
        uploads = _abort_uploads(store)
        removed = _remove_half_sets(store)
    except OwnedByAnotherSidecar:
        raise
    except StoreError as error:
        emit("store_failed", store=store.name, code=error.code, error=error.message, hint=error.hint)
        return False
    if uploads or removed:
        emit("recovered", store=store.name, uploads=uploads, sets=removed)
    return True


def _abort_uploads(store: Store) -> int:
    uploads = list(store.pending(_OURS))
    for upload in uploads:
        store.abort_pending(upload)
    return len(uploads)


def _remove_half_sets(store: Store) -> list[str]:
    keys: dict[str, list[str]] = defaultdict(list)
    for stored in store.list(_OURS):
        set_name = stored.key.partition("/")[0]
        if sets.set_time(set_name) is not None:
            keys[set_name].append(stored.key)
    removed = []
    for set_name, members in keys.items():
        if sets.manifest_key(set_name) not in members and not _has_manifest(store, set_name):
            store.delete(members)
            removed.append(set_name)
    return removed


def _has_manifest(store: Store, set_name: str) -> bool:
    """Asked once more by name: a listing may lag behind, and what is deleted here does not come back."""
    try:
        store.head(sets.manifest_key(set_name))
    except ObjectMissing:
        return False
    return True
