"""Every field that a config may set, with the paper's recipe as the default.

Not a run of its own: the files beside this one start from `get_config()` and change what differs. A field
that is not here cannot be set, in a file or on the command line.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    # A Hugging Face folder, or the id of one on the hub. Empty: pre-train a small model first (`pretrain`).
    config.model.path = ""
    config.model.dtype = "auto"  # of matrix products: bfloat16, but float32 on a CPU, which emulates bfloat16
    config.model.param_dtype = "float32"  # of the master weights while training; 'auto': as they are stored
    config.model.rotary = "float32"  # or 'exact': rotary angles exact at any position, where float32 drifts
    # What a block keeps for the backward pass, from most to least: none (everything), dots, attention, full, offload.
    config.model.remat = "full"
    config.model.scan_unroll = 1  # blocks per iteration of the scan over layers; more undo remat on a CPU
    # Attention while training: 'cpu', plain JAX that runs anywhere; 'cudnn', NVIDIA's, in bfloat16; 'splash', for TPUs.
    # 'auto' takes 'splash' on a TPU and else 'cpu'. With mesh.context it is a ring over these.
    config.model.attention = "auto"
    config.model.attention_chunk = 512  # queries and keys at a time: bounds memory

    config.rope = ConfigDict()
    config.rope.method = "dprope"  # trained and exported
    config.rope.base = 0.0  # 0: the model's; otherwise it must agree with the model
    config.rope.head_dim = 0  # likewise
    config.rope.factors = ""  # of method 'explicit': a JSON list (or one per layer), a LongRoPE CSV, or a model folder
    config.rope.new_base = 0.0  # for method 'abf'
    config.rope.turning = 0.75  # for method 'p_rope': share of pairs that keep turning
    config.compare = ()  # further methods, measured and fine-tuned alike

    config.angles = ConfigDict({"intervals": 360, "arithmetic": "float32"})  # or 'exact', for 16M tokens and more
    config.context = ConfigDict({"original": 0, "target": 8192})  # original 0: the model's
    config.solve = ConfigDict({"n_hat": 0, "threshold": 0.0})  # n_hat 0: by the threshold
    config.solve.resolution = 0.07  # radians, for method 'dprope_robust'

    # Method 'learned': the factors by gradient on batches at the extended context, weights frozen.
    config.learn = ConfigDict({"start": "ntk", "steps": 40, "batch": 8, "learning_rate": 0.02})
    config.learn.attention_factor = False  # learn this, too
    config.learn.joint = False  # and go on learning the vector while the weights are fine-tuned

    config.data = ConfigDict()
    config.data.name = "text_folder"  # or 'pg19', 'python_stdlib'
    config.data.path = ""  # the folder; for pg19 the TFDS data directory
    config.data.streams = 1  # that documents are dealt out to; with one per process, each reads only its own
    config.data.tokenizer = ""  # empty: the model's; a Hugging Face folder, a tokenizer.model, or 'bytes'

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.learning_rate = 2e-5
    config.train.schedule = "constant"
    config.train.warmup_steps = 0
    config.train.b1 = 0.9
    config.train.b2 = 0.999
    config.train.weight_decay = 0.0
    config.train.clip_norm = 0.0
    config.train.mu_dtype = "float32"  # of the first moment, or 'bfloat16'
    config.train.offload_optimizer = False  # moments in the host's memory between updates
    config.train.global_batch = 64  # sequences of context.target tokens per step
    config.train.accumulation = 8  # microbatches per step
    config.train.loss_chunk = 512  # tokens of a row projected to the vocabulary at a time
    config.train.checkpoint_every = 100
    config.train.keep = 2  # newest checkpoints; should the last be damaged, the one before it takes over
    config.train.keep_best = 0  # checkpoints of the lowest loss, beside them
    # Low-rank adaptation, for those who cannot fine-tune all weights; with model.param_dtype = 'bfloat16' the frozen
    # weights take two bytes each. Targets are projections (q, k, v, o, gate, up, down), and what is trained whole:
    # norm, embedding, head, which LongLoRA finds to matter at a longer context.
    config.train.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": ("q", "k", "v", "o")})  # rank 0: all weights

    config.eval = ConfigDict()
    config.eval.split = "validation"
    config.eval.max_tokens = 1_000_000  # of the split, for perplexity
    config.eval.position_tokens = 1_000_000  # of the split, for perplexity by position
    config.eval.document_tokens = 0  # of each document at most, so that more documents are covered; 0: all
    config.eval.stride = 256
    config.eval.batch = 8
    config.eval.passkey_lengths = ()  # empty: the original and the target context
    config.eval.passkey_trials = 50  # per length; 0 leaves passkey out
    config.eval.passkey_depths = 10
    config.eval.passkey_new_tokens = 10
    config.eval.passkey_batch = 8

    # Of experiments.evaluate, as is what follows: names separated by commas. Of perplexity, passkey, longbench_e,
    # ruler, leaderboard, longppl, key_value, many_shot, babilong. The table in README.md says what each needs.
    config.suite = "perplexity,passkey"
    config.eval.lengths = ()  # tokens of windows and prompts; empty: the original and the target context
    config.eval.samples = 100  # of ruler, key_value, many_shot and babilong, per task and length; RULER has 500
    config.eval.generate_batch = 8  # prompts decoded together
    config.eval.conventions = ("token", "yarn", "longlora")  # of perplexity
    config.eval.longbench = ""  # folder of LongBench-E's files
    config.eval.longbench_rows = 0  # of each set and bucket; 0: all
    config.eval.longbench_max_length = 0  # tokens of a prompt; 0: the longest window less 500
    config.eval.essays = ""  # folder of texts, or RULER's PaulGrahamEssays.json
    config.eval.squad = ""  # file dev-v2.0.json, for RULER
    config.eval.hotpotqa = ""  # file hotpot_dev_distractor_v1.json, for RULER
    config.eval.babilong = ""  # folder of bAbI's stories
    config.eval.books = ""  # folder of texts, for BABILong
    config.eval.many_shot = ""  # folder of TREC's questions, or with train.jsonl and test.jsonl
    config.eval.leaderboard = ""  # folder of questions; empty: the Hugging Face hub
    config.eval.leaderboard_limit = 0  # questions of each task; 0: all
    config.eval.longppl_evaluator = ""  # model that finds the key tokens
    config.eval.longppl_context = 4096  # its short context, tokens

    # Of experiments.export.
    config.export = ConfigDict()
    config.export.run = ""  # folder of a run of experiments.extend; empty: model.path with rope.method, untrained
    config.export.method = ""  # of that run; empty: the one that it trained first
    config.export.step = 0  # of that run's checkpoints; 0: the newest; -1: that of the lowest loss
    config.export.formats = ("hf",)  # also 'gguf', and 'adapter' (PEFT) of a run with train.lora
    config.export.gguf = ""  # a .gguf of the model to put the factors into; empty: the weights are converted
    config.export.dtype = ""  # of a converted .gguf's matrices; empty: as they are
    config.export.vocabulary = True  # whether a converted .gguf holds the tokenizer
    config.export.overwrite = False
    config.export.verify_lengths = ()  # tokens; empty: 32, the original and the target context
    config.export.verify_dtype = "float32"  # or 'bfloat16', for a model that does not fit into memory in float32
    config.verify = False  # load what was exported in transformers and compare logits

    # Devices: copies of the model; shards of its weights; shards of its heads; pieces of every sequence in training,
    # for contexts that fit no single device. At most one may be -1, which takes the devices that are left.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})

    # A run of several processes, each with its own devices, on one file system. Either the address of process 0 and who
    # is who, or `auto`: as Slurm, Open MPI, Kubernetes or Cloud TPU tells.
    config.distributed = ConfigDict({"coordinator": "", "processes": 0, "process": -1, "auto": False})
    config.distributed.local_devices = ()  # of this process; empty: all, under Slurm and Open MPI one per process
    config.distributed.timeout = 300  # seconds that processes wait for one another at the start

    config.debug = ConfigDict({"nans": False})  # name the first part of a step that is not finite
    # Folder of compiled programs for later commands. Empty: `compiled` in the run's folder; 'off': none.
    config.compilation_cache = ""
    # Of --plan: folder of the model's config.json, all that it needs of the model; empty: model.path.
    config.plan = ConfigDict({"model": ""})

    # The small model that is trained from nothing when `model.path` is empty.
    config.pretrain = ConfigDict()
    config.pretrain.tokenizer = "bytes"
    config.pretrain.architecture = "llama"  # or 'mistral', 'qwen2', 'qwen3'
    config.pretrain.hidden_size = 128
    config.pretrain.intermediate_size = 352
    config.pretrain.num_layers = 4
    config.pretrain.num_heads = 4
    config.pretrain.num_kv_heads = 4
    config.pretrain.steps = 0
    config.pretrain.learning_rate = 3e-3
    config.pretrain.warmup_steps = 50
    config.pretrain.weight_decay = 0.1
    config.pretrain.clip_norm = 1.0
    config.pretrain.global_batch = 32
    config.pretrain.checkpoint_every = 200
    return config
