#!/bin/sh
# Every cell of a model's table, text by text; cells that have a record are not run again, so it can be stopped and begun
# anew:  sh experiments/quality/grid.sh MODEL TEXT...      (smollm2 on 2 cores: some 90 minutes a text)
# RESULTS is where the records go, PQKV the command.
set -e
model=$1
shift
for text; do
	evaluate() {
		${PQKV:-pqkv} eval --model "$model" --data "$text" -o "${RESULTS:-results/quality}" "$@"
	}
	schedules() { # without sinks apart: codebooks learn from the first tokens only if no cell keeps them exact
		evaluate --bits 4,3,2 --mode exact-schedule,all-coded --coded-sinks 4 --metrics perplexity,agreement,kld "$@"
		evaluate --bits 4,3,2 --mode all-coded --coded-sinks 0 --metrics perplexity,agreement,kld "$@"
	}
	schedules --context 512,1024,2048 --windows 16
	schedules --context 4096,8192 --windows 4
	evaluate --bits 4,2 --mode token,chunk,decode --context 1024,4096 --windows 1 \
		--metrics perplexity,agreement,kld,softmax-mass
	evaluate --bits 4,2 --mode chunk --context 2048 --windows 10 --metrics recall --recall-form word --control
	schedules --context 512,1024,2048 --windows 16 --noise-floor
	schedules --context 4096 --windows 4 --noise-floor
done
