"""Published weights, by name: one file of mappings for each kind. To add one, write its file and name it here."""

from __future__ import annotations

from protoseg.models.published.daformer import DAFORMER
from protoseg.models.published.hrda import HRDA
from protoseg.models.published.hrnet import HRNET
from protoseg.models.published.kind import Kind as Kind
from protoseg.models.published.mit import MIT, MIT_MMSEG
from protoseg.models.published.protoseg import PROTOSEG
from protoseg.models.published.segformer import SEGFORMER, SEGFORMER_MMSEG
from protoseg.models.published.smp import SMP

KINDS = (DAFORMER, HRDA, PROTOSEG, SEGFORMER, SEGFORMER_MMSEG, SMP, MIT, MIT_MMSEG, HRNET)
