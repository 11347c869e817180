"""What other programs of the field call our options, for suggestions."""

LATENTS = "latent_dim latent_dims latent_size z_dim zdim z_size nz n_latent embedding_dim code_size"
CHANNELS = "hidden_dims channels ch_mult channel_mult filters nf ngf ndf base_channels hidden_size"

WORDS: dict[str, str] = {
    # train.py
    "model.rate_weight": "beta kl kl_weight kld_weight kl_coef kl_beta beta_kl lambda_kl",
    "model.learning_rate": "lr base_lr step_size glr dlr lr_g lr_d",
    "model.budget": "epochs max_epochs n_epochs num_epochs nepochs steps max_steps num_steps total_steps n_steps "
    "iterations max_iterations num_iterations iters max_iters n_iter num_iters niter kimg total_kimg",
    "model.validate_every": "val_every eval_every val_interval eval_interval val_freq eval_freq val_check_interval "
    "check_val_every_n_epoch",
    "model.warmup": "warmup_steps lr_warmup warmup_epochs num_warmup_steps",
    "model.decay": "lr_decay decay_steps",
    "model.rate_warmup": "kl_warmup kl_annealing beta_warmup annealing anneal_steps",
    "model.gradient_clip": "grad_clip clip clip_grad max_grad_norm grad_norm gradient_clip_val",
    "model.net.latent": LATENTS,
    "model.generator.latent": LATENTS,
    "model.net.encoder.widths": CHANNELS,
    "model.denoiser.widths": CHANNELS,
    "model.generator.widths": CHANNELS,
    "model.likelihood": "recon_loss reconstruction_loss",
    "model.penalty_weight": "gamma r1 r1_gamma gp gp_weight lambda_gp gradient_penalty r1_weight",
    "model.penalty_every": "d_reg_every r1_every reg_interval lazy_reg",
    "model.feature_weight": "projected projected_gan vision_aided feature_loss perceptual lpips_weight",
    "model.ema_share": "ema ema_images ema_decay ema_kimg ema_rampup ema_rate ema_beta sigma_rel",
    "model.vae": "vae_ckpt vae_path vae_checkpoint pretrained autoencoder first_stage first_stage_ckpt stage1",
    "data.batch_size": "bs batch batchsize train_batch_size batch_size_per_gpu mini_batch minibatch",
    "data.eval_batch_size": "val_batch_size test_batch_size",
    "data.micro_batch_size": "batch_gpu accumulate accumulation grad_accum gradient_accumulation_steps",
    "data.size": "resolution res image_size img_size imsize imgsize image_resolution input_size crop_size side",
    "data.root": "data_dir datadir data_path data_root dataroot dataset dataset_path dataset_dir image_dir images path "
    "train_dir input input_dir folder",
    "data.num_workers": "workers n_workers nworkers num_worker n_threads num_threads",
    "data.flip": "hflip mirror random_flip horizontal_flip xflip augment",
    "data.valid_share": "val_split val_share val_fraction valid_split validation_split",
    "data.limit_valid": "val_images num_val",
    "data.cache": "cache_dir",
    "trainer.devices": "gpus n_gpus ngpus num_gpus gpu gpu_ids n_gpu num_devices num_processes nproc",
    "trainer.num_nodes": "nodes n_nodes nnodes",
    "trainer.accelerator": "device cuda cpu mps",
    "trainer.precision": "amp fp16 bf16 half mixed_precision dtype",
    "trainer.log_every_n_steps": "log_every log_interval log_freq print_freq",
    "seed": "random_seed manual_seed rng_seed seeds",
    "name": "run_name exp_name experiment experiment_name exp run tag run_id version",
    "runs": "output output_dir outdir out_dir out save_dir savedir log_dir logdir results results_dir work_dir workdir "
    "default_root_dir checkpoint_dir ckpt_dir",
    "project": "wandb_project project_name",
    "wandb": "logger tracker use_wandb wandb_mode",
    "checkpoint_minutes": "save_every save_interval save_freq checkpoint_every ckpt_every snap save_steps",
    "compile": "torch_compile use_compile compile_model jit",
    "float32_matmul_precision": "matmul_precision tf32 allow_tf32",
    "trainer.benchmark": "cudnn_benchmark",
    "data.device_share": "gpu_cache cache_on_gpu device_cache",
    "group": "wandb_group",
    "tags": "wandb_tags",
    "notes": "wandb_notes",
    "wandb_artifacts": "log_model log_artifacts save_artifacts upload_checkpoints",
    "ckpt_path": "ckpt checkpoint resume resume_from resume_from_checkpoint resume_path load restore weights "
    "model_path checkpoint_path continue_from init_from",
    "evaluation.n": "num_samples n_samples num_images fid_samples",
    # sample.py
    "n": "num num_images n_images num_samples n_samples nsamples samples count number",
    "out": "output output_dir outdir out_dir outfile output_path save_dir savedir dest",
    "checkpoint": "ckpt ckpt_path model model_path weights checkpoint_path network pretrained load",
    "batch_size": "bs batch batchsize",
    "device": "gpu cuda cpu accelerator gpus",
    "row": "kind which output_type rows",
    "images": "image image_path img imgs photo photos source input inputs reconstruct",
    "variations": "n_variations num_variations noises draws_per_z",
    "interpolate": "interpolation interpolations lerp slerp morph",
    "traverse": "traversal traversals latent_traversal walk dim dims",
    "steps": "frames n_frames num_frames w_frames",
    "temperature": "truncation truncation_psi psi trunc tau temp z_std",
    "noise": "noise_scale noise_std sigma_scale noise_mode",
    "columns": "cols ncol ncols nrow grid",
    "scale": "zoom upscale enlarge",
    "labels": "label captions titles",
    "explore": "gui demo web webui gradio ui serve",
    "export": "save_weights to_safetensors convert",
    "overwrite": "force",
}
"""Place of an option of ours -> its names elsewhere; what an option of Lightning's is called is among them."""

BY_WORD: dict[str, list[str]] = {}
"""Word -> places of our options; which of them there are depends on the script and the classes of the config."""

for place, words in WORDS.items():
    for word in words.split():
        BY_WORD.setdefault(word, []).append(place)
