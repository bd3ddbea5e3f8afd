"""Folders in object storage: one way to open them, a working copy that ships what a job writes, and one owner at a time."""

from slm_ray.remote.folder import (
    address,
    delete_sent,
    fetch_rest,
    fetched,
    here,
    one_file,
    send_folder,
    sent,
    shown_address,
    unchanged,
    working_copy,
)
from slm_ray.remote.settings import addressed, at_hand
from slm_ray.remote.store import (
    NotThere,
    ObjectStore,
    StoreAway,
    beside,
    cache_folder,
    is_remote,
    is_uri,
    joined,
    open_store,
    shown,
)

__all__ = [
    "NotThere",
    "ObjectStore",
    "StoreAway",
    "address",
    "addressed",
    "at_hand",
    "beside",
    "cache_folder",
    "delete_sent",
    "fetch_rest",
    "fetched",
    "here",
    "is_remote",
    "is_uri",
    "joined",
    "one_file",
    "open_store",
    "send_folder",
    "sent",
    "shown",
    "shown_address",
    "unchanged",
    "working_copy",
]
