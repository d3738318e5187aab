# Other names for the commands of README.md; nothing is done here that start.py does not do.
run:
	python3 start.py
test:
	python3 start.py test
docs:
	python3 start.py docs
long: SHELL = bash
long:
	set -o pipefail; (.venv/bin/python -c 'from sagan_nb.machinery.machine import machine_facts; print(machine_facts())' && \
	.venv/bin/python -m pytest -m long -v --durations=0 --durations-min=1 --no-header tests && .venv/bin/python -m tools.mutate) 2>&1 | tee results/long.txt
.PHONY: run test docs long
