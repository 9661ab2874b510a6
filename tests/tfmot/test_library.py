import os
import subprocess
import sys

import pytest

from edgecompress.errors import UnavailableError
from edgecompress.tfmot.library import import_tfmot

CODE = """
import os
from edgecompress.tfmot.library import import_tfmot
import_tfmot()
from tensorflow_model_optimization.python.core.quantization.keras import quantizers
import tensorflow as tf
print(os.environ.get("TF_USE_LEGACY_KERAS"), tf.keras.Model.__module__.split(".")[0])
"""


@pytest.mark.parametrize(("variable", "printed"), [(None, "None keras"), ("0", "0 keras"), ("1", "1 tf_keras")])
def test_tf_keras_of_the_user_stays_what_it_is(variable: str | None, printed: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {} if variable is None else {"TF_USE_LEGACY_KERAS": variable}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed


def test_without_it_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization.python.core.keras.compat", None)
    with pytest.raises(UnavailableError, match=r'not installed\. Fix: pip install "edgecompress\[convert\]"'):
        import_tfmot()
