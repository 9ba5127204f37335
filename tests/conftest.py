"""Checks the shapes that lwfed's annotations promise while tests run, and gives every test one thread."""

from __future__ import annotations

import os

import torch
from jaxtyping import install_import_hook

CHECKED = ("lwfed.models", "lwfed.objectives", "lwfed.federated")

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
install_import_hook(CHECKED, "beartype.beartype")
