"""Puts our `LigerFusedLinearGRPOLoss` in the place of Liger's before Liger's own tests import theirs: a pytest plugin
for `pytest -p tests.support.liger_suite test/chunked_loss/test_grpo_loss.py` in a checkout of Liger."""

import liger_kernel.chunked_loss
from siri_kernels.integrations.liger import LigerFusedLinearGRPOLoss

liger_kernel.chunked_loss.LigerFusedLinearGRPOLoss = LigerFusedLinearGRPOLoss
