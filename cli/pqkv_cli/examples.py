"""One line for each command that can be typed as it stands: what `pqkv COMMAND --help` ends with."""

EXAMPLES = {
    "train-codebooks": "pqkv train-codebooks --model smollm2 --bits 4 -o codebooks.safetensors",
    "eval": "pqkv eval --bits 4,2 --context 1024 --windows 4 -o results/mine",
    "lm-eval": "pqkv lm-eval --model_args pretrained=smollm2,bits=4 --tasks pqkv_needle --batch_size 4",
    "generate": "pqkv generate --bits 4,2 --tokens 200 --prompt 'The history of the book'",
    "export": "pqkv export --bits 4 --prompt-file prompt.txt -o cache.safetensors",
    "lab": "pqkv lab experiments/quality-lab/smollm2.toml -o results/lab",
    "codecs": "pqkv codecs --name kivi",
    "recommend": "pqkv recommend --model smollm2 --max-ppl 1% --bits 4.5",
    "bench": "pqkv bench --bits 4,2 --lengths 4096,32768 -o results/bench",
    "sweep": "pqkv sweep sweep.toml -o results/sweep",
    "merge": "pqkv merge results/one results/other -o results/both",
    "compare": "pqkv compare results/before results/after --fail-above 1%",
    "report": "pqkv report results/mine -o results/mine",
    "reproduce": "pqkv reproduce quality-degradation --quick",
    "models": "pqkv models smollm2",
    "env": "pqkv env --format json",
}
