"""The back end `siri` of verl's fused kernels. Installed beside verl it needs no import, and two settings of a run:

    actor_rollout_ref.model.use_fused_kernels=True
    actor_rollout_ref.model.fused_kernel_options.impl_backend=siri

verl loads this module from the entry-point group `verl.plugins`. Loading it registers the name and changes nothing:
verl's modules are not imported, and none of their functions is replaced. verl 0.9 keeps no list of back ends that could
be added to, so the name is registered where verl chooses a forward: when `verl.models.transformers.monkey_patch` is
imported, its `patch_forward_with_backends` gets a switch in front of it, which hands every back end but `siri` through
with the arguments it came with. Only a model that asks for `siri` gets our head; verl's `torch`, `liger` and `triton`
remain what they are, in the same process, too. VERL_USE_EXTERNAL_PLUGINS=none turns all plugins off.
"""

# The trainer's models and batches are whatever it makes of them.
# pyright: basic

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

BACKEND = "siri"
CHOICE = "verl.models.transformers.monkey_patch"
"""verl's module in which a model's forward is chosen by the name of a back end"""
HEADS = "verl.utils.experimental.torch_functional"
"""verl's module in which its forwards look up `FusedLinearForPPO` when they run"""


def switch(theirs: Any) -> Any:
    """verl's `patch_forward_with_backends`, which also knows `siri`."""

    @functools.wraps(theirs)
    def patch_forward_with_backends(model, use_fused_kernels=False, fused_kernels_backend=None):
        if not use_fused_kernels or fused_kernels_backend != BACKEND:
            return theirs(model, use_fused_kernels=use_fused_kernels, fused_kernels_backend=fused_kernels_backend)
        offer_head()
        # verl's forward for its torch back end hands hidden states, weight, targets and temperature to the head
        theirs(model, use_fused_kernels=True, fused_kernels_backend="torch")
        model._verl_fused_kernels_backend = BACKEND
        print(f"siri-kernels: the head of {type(model).__name__} is ours, inside verl's torch forward")

    return patch_forward_with_backends


def offer_head() -> None:
    """Let verl's `FusedLinearForPPO` make our head where it is asked for the back end `siri`; done at the first model
    that asks. Checks the signatures that this needs."""
    from siri_kernels.integrations.seams import seam, takes, tested
    from siri_kernels.integrations.verl_head import FusedLinearForPPO as OurHead

    theirs = seam(HEADS, "FusedLinearForPPO")
    if hasattr(theirs, "siri_kernels_offered"):
        return
    tested("verl", "0.9", "0.10")
    where = f"{HEADS}.FusedLinearForPPO"
    takes(theirs.__init__, where, "impl_backend")
    takes(theirs.forward, f"{where}.forward", "hidden_states", "vocab_weights", "input_ids", "temperature")

    form = inspect.signature(theirs.__init__)

    class FusedLinearForPPO(theirs):
        siri_kernels_offered = True

        def __new__(cls, *args: Any, **options: Any) -> Any:
            wanted = form.bind_partial(None, *args, **options).arguments.get("impl_backend")
            return OurHead() if wanted == BACKEND else super().__new__(cls)

    FusedLinearForPPO.__module__, FusedLinearForPPO.__qualname__ = theirs.__module__, theirs.__qualname__
    sys.modules[HEADS].__dict__["FusedLinearForPPO"] = FusedLinearForPPO


def add_switch(module: ModuleType) -> None:
    """Put the switch into verl's module; a line where it has no place, so that nobody asks for `siri` in vain."""
    theirs = getattr(module, "patch_forward_with_backends", None)
    if theirs is None:
        warnings.warn(
            f"siri-kernels: {CHOICE}.patch_forward_with_backends is no longer there, so impl_backend={BACKEND} does "
            "nothing with this verl: set VERL_USE_EXTERNAL_MODULES=siri_kernels.integrations.verl instead",
            stacklevel=2,
        )
        return
    if not hasattr(theirs, "__wrapped__"):
        module.__dict__["patch_forward_with_backends"] = switch(theirs)


class AtImport(MetaPathFinder, Loader):
    """Adds the switch when verl itself imports the module, and steps aside."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != CHOICE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        self.theirs, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.theirs.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.theirs
        if module.__spec__ is not None:
            module.__spec__.loader = self.theirs
        self.theirs.exec_module(module)
        add_switch(module)


def register() -> None:
    """Make `siri` known to verl; a second call changes nothing."""
    if CHOICE in sys.modules:
        add_switch(sys.modules[CHOICE])
    elif not any(type(finder).__qualname__ == AtImport.__qualname__ for finder in sys.meta_path):
        sys.meta_path.insert(0, AtImport())


register()
