# Imports what an engine does, has it read the settings of models, and tells in its last line what was
# found: `trial.py ENGINE MODELS`, where MODELS is {"NAME": {"settings": {…}, "pipeline": "CLASS"}}.
import importlib
import json
import sys

engine, models = sys.argv[1], json.loads(sys.argv[2])
found = {"python": ".".join(map(str, sys.version_info[:3])), "missing": {}, "wrong": {}}
module = "rayreel.engines." + engine.replace("-", "_")
for name in ["rayreel", "torch", "diffusers", "transformers", module]:
    try:
        found[name] = getattr(importlib.import_module(name), "__version__", None)
    except Exception as error:
        found["missing"][name] = f"{type(error).__name__}: {error}"
if "torch" in found:
    torch = sys.modules["torch"]
    found["cuda"] = torch.version.cuda
    found["devices"] = torch.cuda.device_count() if torch.cuda.is_available() else 0


def refusal(name, model):
    """Why the engine can't run the model; None: as far as can be seen without its weights, it can."""
    from rayreel.__main__ import engine_named
    from rayreel.engine import LoadFailed
    from rayreel.wire import Load

    try:
        engine_named(engine).read_settings(Load(protocol=1, model=name, settings=model["settings"]))
    except LoadFailed as error:
        return str(error)
    if engine == "stable-diffusion" and model["pipeline"] is not None:
        # What AutoPipelineForText2Image asks itself.
        from diffusers.pipelines import auto_pipeline

        stills = auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING
        if auto_pipeline._get_task_class(stills, model["pipeline"], False) is None:
            return f"diffusers makes no stills of text with a {model['pipeline']}"
    return None


if not found["missing"]:
    for name, model in models.items():
        try:
            why = refusal(name, model)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            found["wrong"][name] = why
print("\n" + json.dumps(found))
