"""Python's garbage collector, kept from looking at what stays anyway."""

from __future__ import annotations

import gc


def keep_what_is_there() -> None:
    """Collect once, and leave out of later collections whatever is in memory now.

    A model and the libraries below it are hundreds of thousands of objects that stay as long as
    the process. Under load a full collection would go through all of them every two seconds and
    hold up every thread meanwhile, the event loop too: 80 to 260 ms where this was measured. It
    does so here, when a model has been loaded, and what follows sees only what requests leave.
    """
    gc.unfreeze()  # of the time before, a model that was replaced may have become garbage
    gc.collect()
    gc.freeze()
