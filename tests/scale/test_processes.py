"""Real processes under torchrun share the work of the commands; one is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from disp.data.scene_dataset import write_scenes
from disp.models.saving import save_model

pytestmark = pytest.mark.slow
