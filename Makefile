# make repro: from nothing to a trained, evaluated model and a page that shows it.
# make test:  the tests.
# Both make .venv with pinned versions first, when it is missing or pyproject.toml or constraints.txt is newer.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN := PATH="$$PWD/$(BIN):$$PATH"

.PHONY: repro test fuzz chaos mutants exp ablate tune table8 compare paper docs readme-picture install clean

repro: $(BIN)/.installed
	@$(BIN)/python -m flows.check
	@$(RUN) dvc repro
	@test -z "$$(git status --porcelain dvc.lock)" || echo "dvc.lock names what was made: git add dvc.lock && git commit -m result keeps it in git, for dvc metrics diff to compare with"

test: $(BIN)/.installed
	@$(RUN) ruff check -q .
	@$(RUN) python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# make fuzz: 10,000 damaged files, each of which must get a verdict (half an hour); make fuzz FILES=500: fewer.
FILES ?= 10000
fuzz: $(BIN)/.installed
	@MAAVT_FUZZ=$(FILES) $(RUN) python -m pytest tests/media/test_decode.py -k mutated

# make chaos: the whole pipeline, killed 25 times at random moments, must end as if it had not been (an hour); make chaos
# KILLS=5 SEED=1: fewer, at other moments. Before it the tests that take minutes each.
KILLS ?= 25
SEED ?= 0
chaos: $(BIN)/.installed
	@$(RUN) python -m pytest -m long
	@$(RUN) python -m tests.chaos --kills $(KILLS) --seed $(SEED)

# make mutants: small changes to the code named in pyproject.toml (tool.mutmut), one at a time: how many do the tests
# notice? (an hour on 2 cores) Survivors are in mutants/report.txt. ONLY='maavt.shards.*': fewer; MINUTES=20: stop then.
MINUTES ?= 60
mutants: $(BIN)/.installed
	@$(RUN) python -m tests.mutants --minutes $(MINUTES) $(foreach only,$(ONLY),'$(only)')

# make exp SET='tokens=10 maavt.lsa=false' NAME=mine: one experiment with these settings; the workspace stays as it was.
exp: $(BIN)/.installed
	@$(RUN) python -m flows.exp $(if $(NAME),--name $(NAME)) $(SET)

# make ablate SETTINGS='maavt.lsa=true,false' SEEDS='0 1' MORE='-S tokens=10': a grid of experiments, and what all of them
# share; by default Table 8's numbers of tokens.
SETTINGS ?= tokens=2,5,10,15
SEEDS ?= 0 1 2
ablate: $(BIN)/.installed
	@$(RUN) python -m flows.ablate $(SETTINGS) --seeds $(SEEDS) $(MORE)

# make tune: rates and parts of MA-AVT; what the validation split prefers is said at the end. TUNE='...' for other ones.
TUNE ?= maavt.adapter_rate=0.03,0.1,0.3 maavt.prompt_rate=0.03,1 maavt.stream_weight=0 maavt.contrastive_trains=all \
  augment_sound.time_mask=0.2
tune: $(BIN)/.installed
	@$(RUN) python -m flows.ablate $(TUNE) --seeds 0 --metric val_accuracy $(MORE)

# make table8: the paper's ablations (its section D), for MA-AVT as published and with the recipe of today.
TABLE8 := recipe=paper,best+tokens=2,5,10,15 recipe=paper,best+maavt.unimodal_prompts=false recipe=paper,best+maavt.lsa=false \
  recipe=paper,best+maavt.shared_prompts=false+maavt.contrastive=off recipe=paper,best+maavt.mining=0 \
  recipe=paper,best+maavt.contrastive_trains=all+maavt.contrastive=blockwise,off,final
table8: $(BIN)/.installed
	@$(RUN) python -m flows.ablate $(TABLE8) --seeds $(SEEDS) $(MORE)

# make compare MODELS='maavt lavish' SEEDS='0 1 2' RATES='0.33 1 3' MORE='-S tokens=10': each model at its best rate.
MODELS ?= maavt paper linear lavish mbt
RATES ?= 0.33 1 3
compare: $(BIN)/.installed
	@$(RUN) python -m flows.compare --models $(MODELS) --seeds $(SEEDS) --rates $(RATES) $(MORE)

# make paper DATASET=vggsound MORE='vggsound.local=/path': a data set (ave, vggsound, cremad) with the paper's settings
# (its section C) and ViT-Base from timm's hub; further settings in MORE. Meant for a GPU.
DATASET ?= ave
PAPER := recipe=paper 'models=[maavt]' backbone=vit_base_patch16_224.augreg_in21k weights=timm image_size=224 \
  shard.frame_size=224 tokens=5 maavt.projector=mlp train.batch=256 train.learning_rate=0.01 train.schedule=step train.step_epochs=15 \
  train.warmup=0 train.epochs=50
paper: $(BIN)/.installed
	@$(if $(filter $(DATASET),ave vggsound cremad),,echo "error: DATASET=$(DATASET): expected ave, vggsound or cremad" >&2; exit 2)
	@$(RUN) python -m flows.exp --name paper-$(DATASET) dataset=$(DATASET) $(PAPER) $(MORE)

# make docs: the documentation as a site, in .work/site.
docs: $(BIN)/.installed
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

# make readme-picture: the head of data/report/index.html, light and dark, for the README; needs Chromium.
readme-picture: $(BIN)/.installed
	@$(RUN) python -m tests.browser data/report/index.html docs/images

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { echo "error: $(PYTHON) is not Python 3.11 or 3.12; say which to take: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	@# On all cores; without it, where PYTHONDONTWRITEBYTECODE is set, torch would be compiled anew at every start (20 s).
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@

# Outputs and unfinished work; DVC's cache in .dvc/cache stays, so that a repro brings the outputs back at once.
clean:
	rm -rf data/*/ .work
