"""What centroids in int8 could gain on a GPU, by the model of `pqkv bench --static`; needs no GPU, but the assembler.

.venv/bin/python experiments/checks/byte_centroids.py

Keys: `dp2a` multiplies two bytes of a centroid with two 16-bit numbers of a query and adds to 32 bits. It takes the
place of an fp16x2 product for each query head, so instructions are taken to stay as many, though fp16 sums would no
longer have to be widened and integers would have to be; a multiprocessor does 64 a clock (CUDA programming guide,
arithmetic instructions, 8.0 and 9.0). Two channels are half a word, four are one, so a table has half its words: fewer
lanes meet in a bank. Values: probabilities stay in fp16 and bytes are widened first, at no cost here; so their loads
halve and nothing else does. All of it is a bound from below: what the kernel would take if nothing but the model's
costs were there.
"""

from dataclasses import replace

from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.speed.static import CONFLICTS, GPUS, Kernel, clocks_per_token, examine

GPU = GPUS["h100"]
DP2A_LANES = 64  # results a clock and multiprocessor


def with_bytes(kernel: Kernel) -> float:
    """Clocks of one multiprocessor for a token in one KV head."""
    variant, keys, values = kernel.variant, kernel.keys, kernel.values
    group, words = variant.group, variant.keys.d_sub / 4
    conflict = CONFLICTS[128] if words < 1 else CONFLICTS[variant.keys.entries]
    issued = keys.instructions * group / GPU.issues_per_clock
    products = variant.keys.d_sub / 2 * group * 32 / DP2A_LANES
    served = max(1.0, words) * conflict + keys.broadcasts * group
    total = variant.keys.num_subspaces / 32 * max(issued, products, served)
    issued = values.instructions * group / GPU.issues_per_clock
    served = variant.values.centroid_words / 2 + values.broadcasts * group
    return total + variant.values.num_subspaces / 32 * max(issued, served)


def main() -> None:
    print("| bits | query heads a block | clocks a token now | with bytes | times |\n|---|---|---|---|---|")
    for bits, subspaces in ((4, 64), (2, 32)):
        for group in (1, 4, 8):
            codes = Codes(subspaces, 8, 128 // subspaces, "transposed")
            variant = coded_variant(group, codes, codes)
            kernel = examine(variant, GPU)
            if not variant.decodes:  # tables of sums would give way to centroids
                decoding = examine(replace(variant, group=4), GPU)
                kernel = replace(kernel, keys=decoding.keys)
            now, then = clocks_per_token(examine(variant, GPU), GPU), with_bytes(kernel)
            print(f"| {bits} | {group} | {now:.2f} | {then:.2f} | {then / now:.2f} |")


if __name__ == "__main__":
    main()
