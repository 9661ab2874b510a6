from __future__ import annotations

import numpy as np
import pytest

from edgecompress.data import Dataset, fix_shapes
from edgecompress.models import load_model
from edgecompress.outputs import TrainingFolder
from edgecompress.profiles import load_profile
from edgecompress.recipes import Recipe
from edgecompress.samples import Samples
from edgecompress.techniques import Cluster, Prune, Qat, Training
from edgecompress.training import run_passes

WRONG = 3  # added to each label, modulo 10


@pytest.mark.parametrize("last", [Cluster(epochs=4, distill=1.0), Qat(epochs=4, distill=1.0)])
def test_the_model_from_before_the_first_pass_teaches_all_of_them(digits_cnn, tmp_path, last) -> None:
    """Wrong labels ruin the model in the first pass; in the last one it learns from what it was before."""
    source = load_model(digits_cnn.model)
    with np.load(digits_cnn.data) as file:
        x, y = file["x"], file["y"]
    data = Dataset({source.inputs[0].name: x}, (y + WRONG) % 10, source="digits")
    fixed = fix_shapes(source.inputs, data)
    samples = Samples(fixed, None, data.select(np.arange(8)), training=data)
    training = Training(learning_rate=3e-3)

    def agreement(*passes):
        with TrainingFolder(tmp_path / "out") as folder:
            recipe = Recipe(passes=passes, training=training)
            done = run_passes(source, recipe, samples, folder, lambda *_step: None, device=load_profile("pixel"))
        answers = done.model.predict({fixed[0].name: x}, fixed=fixed)[source.outputs[0]]
        return np.mean(answers.argmax(-1) == np.asarray(source.model(x)).argmax(-1))

    ruin = Prune(sparsity=0.3, epochs=6)
    assert agreement(ruin) < 0.3
    assert agreement(ruin, last) > 0.8
