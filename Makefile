# make demo    set up, train the nano model through every stage there is, open its report
# make test    set up, run the fast tests and every static check
# make check   lint, types and import rules only

.PHONY: demo test test-slow check setup clean

demo:
	@scripts/setup.sh
	@.venv/bin/glm5 run recipes/nano.toml

test:
	@scripts/setup.sh --tests
	@.venv/bin/python -m pytest -m "not slow"

test-slow:
	@scripts/setup.sh --tests
	@.venv/bin/python -m pytest -m slow

check:
	@scripts/setup.sh --tests
	@.venv/bin/python -m pytest tests/test_house.py

setup:
	@scripts/setup.sh --tests

clean:
	rm -rf runs .venv build src/*.egg-info
