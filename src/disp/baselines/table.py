"""The table of rival defences; one more is one more file and one more line here."""

from __future__ import annotations

from disp.baselines.bye import BYE
from disp.baselines.clustering import CLUSTERING
from disp.baselines.gtm import GTM
from disp.baselines.interface import Answering, Filter
from disp.baselines.likelihood import LIKELIHOOD
from disp.baselines.mask_all import MASK_ALL
from disp.baselines.perfect_drop import PERFECT_DROP
from disp.baselines.pixels import BLUR, JPEG, SHRINK
from disp.baselines.purmm import PURMM
from disp.baselines.random_drop import RANDOM_DROP
from disp.baselines.random_mask import RANDOM_MASK
from disp.baselines.salient import LEAST_SALIENT, MOST_SALIENT
from disp.baselines.spectral import SPECTRAL

DEFENCES: dict[str, Filter | Answering] = {
    defence.name: defence
    for defence in (
        BYE,
        SPECTRAL,
        CLUSTERING,
        LIKELIHOOD,
        RANDOM_DROP,
        PERFECT_DROP,
        GTM,
        PURMM,
        JPEG,
        BLUR,
        SHRINK,
        MOST_SALIENT,
        RANDOM_MASK,
        LEAST_SALIENT,
        MASK_ALL,
    )
}
