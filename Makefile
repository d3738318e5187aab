# Other names for the commands of README.md; nothing is done here that start.py does not do.
run:
	python3 start.py
test:
	python3 start.py test
long:
	.venv/bin/python -m pytest -m long tests
.PHONY: run test long
