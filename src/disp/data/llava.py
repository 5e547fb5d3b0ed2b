"""The dataset's names where they used to be; new code imports them from the modules below."""

from disp.data.dataset import Dataset, Problem, identity, set_aside
from disp.data.loading import load_dataset
from disp.data.saving import save_dataset

__all__ = ["Dataset", "Problem", "identity", "load_dataset", "save_dataset", "set_aside"]
