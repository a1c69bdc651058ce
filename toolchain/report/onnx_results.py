"""Notes on a run whose model is only an ONNX file: what was left out, and how far int8 agrees with the file."""

from toolchain.core.run_report import BASELINE
from toolchain.export.read_onnx import WHAT_A_MODULE_ADDS
from toolchain.measure.accuracy import Verification
from toolchain.training.finetune import FinetunedModel


def list_notes(dense: FinetunedModel, verified: Verification) -> list[str]:
    """Return what was not done and what a torch module would add, then each variant's agreement with the file."""
    name = dense.trained.record["onnx_file"]["file"]
    reference = verified.predictions[BASELINE]["test"].torch.argmax(1)
    notes = [f"{name} is only an ONNX file: {WHAT_A_MODULE_ADDS}"]
    for variant, by_split in verified.predictions.items():
        if variant != BASELINE:
            same = by_split["test"].artefact.argmax(1) == reference
            notes.append(f"{variant} predicts the same class as {name} on {same.mean():.1%} of {len(same)} test images")
    return notes
