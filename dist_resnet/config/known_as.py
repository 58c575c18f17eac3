"""What the keys of a configuration are called elsewhere: in timm, torchvision's references,
Lightning, Hugging Face, ffcv-imagenet, torchrun and SLURM."""

import difflib
from collections.abc import Sequence

KNOWN_AS = {
    "model.name": ("arch", "architecture", "model", "network", "backbone"),
    "model.width": ("widen_factor", "width_factor"),
    "model.stochastic_depth": ("drop_path", "drop_path_rate", "drop_connect"),
    "data.dir": ("data", "data_dir", "data_path", "dataset_path", "root"),
    "data.loader_threads": ("num_workers", "workers", "dataloader_num_workers"),
    "data.batches_ahead": ("prefetch_factor", "prefetch"),
    "data.resolution": ("img_size", "image_size", "input_size", "crop_size", "train_crop_size"),
    "data.eval_resolution": ("val_crop_size", "val_resolution"),
    "data.eval_share": ("crop_pct",),
    "data.mix": ("mixup", "cutmix"),
    "data.mix_alpha": ("mixup_alpha", "cutmix_alpha"),
    "data.flip": ("hflip", "horizontal_flip"),
    "batch.global": ("batch_size", "global_batch_size", "train_batch_size", "total_batch_size"),
    "batch.per_worker": (
        "batch_size",
        "local_batch_size",
        "micro_batch_size",
        "per_device_train_batch_size",
    ),
    "batch.virtual_workers": (
        "accumulate_grad_batches",
        "gradient_accumulation_steps",
        "grad_accum_steps",
        "grad_accum",
    ),
    "optim.name": ("opt", "optimizer"),
    "optim.lr": ("lr", "learning_rate", "base_lr", "initial_lr", "init_lr", "max_lr", "peak_lr"),
    "optim.adam_beta2": ("beta2", "adam_beta2"),
    "optim.weight_decay": ("weight_decay", "wd", "l2"),
    "optim.ema": ("model_ema", "model_ema_decay", "ema_decay"),
    "optim.clip_norm": ("clip_grad", "clip_grad_norm", "gradient_clip_val", "max_grad_norm"),
    "schedule.steps": ("epochs", "num_epochs", "max_epochs", "num_train_epochs", "total_steps"),
    "schedule.decay": ("sched", "lr_scheduler", "lr_schedule", "scheduler", "lr_decay"),
    "schedule.milestones": ("lr_steps", "lr_milestones"),
    "schedule.gamma": ("lr_gamma", "lr_step_gamma", "decay_rate"),
    "schedule.final_lr": ("min_lr", "eta_min", "lr_min"),
    "schedule.warmup_length": ("warmup", "warmup_epochs", "warmup_steps", "lr_warmup_epochs"),
    "schedule.warmup_lr": ("warmup_lr", "lr_warmup_decay", "warmup_start_lr"),
    "train.seed": ("seed", "random_seed", "manual_seed"),
    "train.init_from": ("pretrained", "initial_checkpoint", "init_checkpoint", "weights", "resume"),
    "train.device": ("device", "accelerator"),
    "train.precision": (
        "precision",
        "amp",
        "amp_dtype",
        "dtype",
        "mixed_precision",
        "fp16",
        "bf16",
    ),
    "train.compile": ("compile", "torchcompile", "torch_compile"),
    "train.activation_checkpointing": ("grad_checkpointing", "gradient_checkpointing"),
    "train.deterministic": ("deterministic", "use_deterministic_algorithms"),
    "train.label_smoothing": ("label_smoothing", "smoothing"),
    "train.max_steps": ("max_steps", "max_iters", "max_train_steps"),
    "train.log_every": ("log_interval", "print_freq", "logging_steps", "log_every_n_steps"),
    "train.evaluate_every": ("eval_interval", "val_interval", "check_val_every_n_epoch"),
    "train.checkpoint_every": ("save_interval", "save_steps", "checkpoint_interval"),
    "train.keep_checkpoints": ("save_top_k", "checkpoint_hist", "save_total_limit"),
    "train.eval_batch": ("eval_batch_size", "val_batch_size", "test_batch_size"),
    "train.eval_tta": ("tta",),
    "train.timeout_s": ("dist_timeout", "ddp_timeout"),
    "tracking.wandb": ("wandb", "wandb_mode", "report_to", "log_wandb"),
    "tracking.project": ("wandb_project", "project"),
    "tracking.entity": ("wandb_entity", "entity"),
    "tracking.group": ("wandb_group",),
    "--workers-per-node": (
        "devices",
        "gpus",
        "num_gpus",
        "ngpus",
        "nproc_per_node",
        "workers",
        "world_size",
    ),
    "--nodes": ("num_nodes", "nnodes"),
    "--run-dir": ("out", "output", "output_dir", "log_dir", "save_dir", "default_root_dir"),
}
NOTES = {
    "schedule.steps": "epochs x training images / schedule.reference_batch",
    "batch.virtual_workers": "accumulation steps x workers",
    "train.init_from": "weights only; to resume, give the same command again",
}


def suggestion(key: str, valid: Sequence[str]) -> str:
    """What to write in place of an unknown key: by what others call it, by its last part, by its
    letters, or the keys of its section."""
    section, _, last = key.replace("-", "_").rpartition(".")
    ours = [own for own, names in KNOWN_AS.items() if last in names]
    if ours := [own for own in ours if own in valid or own.startswith("--")]:
        told = [f"{own} ({NOTES[own]})" if own in NOTES else own for own in ours]
        return f"here it is {' or '.join(told)}"
    near = [own for own in valid if own.endswith(f".{last}")]
    near = near or difflib.get_close_matches(key, valid, 3)
    near = near or [own for own in valid if own.startswith(f"{section}.")]
    if near:
        return f"nearest: {', '.join(near)}"
    sections = ", ".join(dict.fromkeys(own.split(".")[0] for own in valid))
    return f"keys are section.key, and the sections are {sections}"
