"""Speech and images."""

from benchmarks.studies.study import Study, Variant

AN4 = Study(
    name="an4",
    config="configs/an4_speech.py",
    files="an4_mfcc/an4",
    budget={
        "model.num_layers": 3,
        "model.model_dim": 96,
        "model.num_heads": 3,
        "model.feed_forward_dim": 192,
        "task.frames_per_token": 4,
        "num_steps": 3000,
        "batch_size": 8,
        "optimizer.learning_rate": 1e-3,
        "log_every": 50,
        "checkpoint_every": 500,
        "evaluation.every": 250,
    },
    variants={
        "linear": Variant({}, 0.0808),
        "softmax": Variant({"model.attention": "softmax"}, 0.0512),
        "BiLSTM": Variant({"model.num_layers": 2, "model.hidden_dim": 96}, 0.1094, config="configs/an4_bilstm.py"),
    },
    metric="error_rate",
    higher_is_better=False,
    published="phone error rate on WSJ, 80 hours (arXiv 2006.16236, table 3)",
    reduced="AN4, 48 minutes, instead of WSJ; 3 of 9 layers, width 96 of 192 (BiLSTM 2 of 3 layers, 96 of 320); four "
    "frames to a token instead of one; batches of 8; 3,000 steps",
)

MNIST = Study(
    name="mnist",
    config="configs/mnist_images.py",
    files=".",
    budget={
        "model.num_layers": 3,
        "model.model_dim": 128,
        "model.num_heads": 4,
        "model.feed_forward_dim": 256,
        "model.dropout": 0.0,
        "num_steps": 1500,
        "batch_size": 4,
        "optimizer.learning_rate": 1e-3,
        "optimizer.final_fraction": 0.05,
        "log_every": 10,
        "checkpoint_every": 500,
        "evaluation.every": 150,
        "evaluation.max_tokens": 784 * 256,
    },
    variants={"linear": Variant({}, 0.644)},
    metric="bits_per_dim",
    higher_is_better=False,
    published="bits per dimension after 250 epochs (arXiv 2006.16236, table 1)",
    reduced="3 of 8 layers, width 128 of 256 with 4 heads of 8, no dropout; 1,500 steps of 4 images, 0.1 of 250 "
    "epochs; 256 of 10,000 held-out images",
    references=lambda config: {"published, 250 epochs": 0.644},
)
