"""Tests on real garments run where these are; the end of every other run says that they were left out."""

import pytest

from nestor.data.named import FASHION_FOLDER

LACKING_GARMENTS = [] if FASHION_FOLDER.is_dir() else ["Fashion-MNIST (apt install dataset-fashion-mnist)"]
needs_garments = pytest.mark.skipif(bool(LACKING_GARMENTS), reason="Fashion-MNIST is not here")
