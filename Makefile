# Other names for the commands of README.md; `long` alone is more than start.py does.
run:
	python3 start.py
test:
	python3 start.py test
docs:
	python3 start.py docs
long: SHELL = bash
long:
	mkdir -p runs; set -o pipefail; (.venv/bin/python -m pip install -q -e '.[fuzz]' && .venv/bin/python -c 'from sagan_nb.machinery.machine import machine_facts; print(machine_facts())' && \
	for part in "crash --kills 240" "scarce --tries 120" "damage --flips 400" "fuzz --executions 1200000" "fuzz --by_coverage --executions 400000" "soak --minutes 30" oldest; do .venv/bin/python -m tools.faults.$$part --out results/faults || exit 1; done && \
	.venv/bin/python -m pytest -m long -v --durations=0 --durations-min=1 --no-header tests && .venv/bin/python -m tools.mutate) 2>&1 | tee runs/long.txt && \
	mv runs/long.txt results/long.txt && .venv/bin/python -m tools.site.readme
.PHONY: run test docs long
