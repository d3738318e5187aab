# Other names for the commands of README.md; nothing is done here that start.py does not do.
run:
	python3 start.py
test:
	python3 start.py test
docs:
	python3 start.py docs
long:
	(.venv/bin/python -m pytest -m long -rA --no-header tests && .venv/bin/python -m tools.mutate) 2>&1 | tee results/long.txt
.PHONY: run test docs long
