"""Models in a store that are nothing but a manifest."""

from localllm.models.manifest import Manifest, ModelFile, write_manifest


def put_model(home, name="smollm2-135m", variant="q4_1", size=98_362_432, **changes):
    directory = home.models / name / variant
    directory.mkdir(parents=True)
    (directory / "model.gguf").write_bytes(b"GGUF")
    manifest = Manifest(
        name=name,
        variant=variant,
        source="test",
        format="gguf",
        files=(ModelFile("model.gguf", size, "0" * 64),),
        quantization=variant.upper(),
        **changes,
    )
    write_manifest(directory, manifest)
    return manifest
