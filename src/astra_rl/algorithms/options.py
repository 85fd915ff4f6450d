"""Descriptions of the options that several algorithms share, see `document_options`."""

CLIP = {
    "clip_low": "Lower clip bound of the probability ratio: ratio >= 1 - clip_low; in (0, 1].",
    "clip_high": "Upper clip bound of the probability ratio: ratio <= 1 + clip_high; positive.",
}
CREDIT = {
    "credit": "How reward is passed back to earlier turns, one of `CREDITS`: ``'turn'`` (own "
    "reward only), ``'return_to_go'``, ``'mean_backup'``, ``'max_backup'``, ``'leaf'`` or "
    "``'trajectory'``.",
    "gamma": "Discount per turn, in [0, 1]; used by ``'mean_backup'`` and ``'max_backup'``.",
}
GROUP = {
    "group": "Which attacks form a group, whose mean reward is the baseline: ``'siblings'``, "
    "sampled from one context; ``'episode'``, all of one episode; ``'prompt'``, all of the "
    "episodes with the same opening prompt. On trees deeper than 1 the last two compare an attack "
    "with its own descendants, which biases the gradient.",
    "baseline_decay": "Decay of the exponential moving average of rewards that is the baseline of "
    "an attack without others in its group, in [0, 1).",
}
SCALE = {
    "scale": "Divisor of the advantages: the standard deviation of the rewards of the ``'group'``, "
    "the root mean square of the advantages of the ``'batch'``, both without the KL penalty, or "
    "``'none'``. Rewards that all tie are not scaled.",
}
WEIGHTING = {
    "shared_nodes": "Weight of a turn of a tree: ``'expected_return'``, the probability that a "
    "uniform random walk from the root visits it, so that the loss is that of the expected return "
    "of a conversation; ``'once'``, 1, so that the last level of a wide tree dominates; "
    "``'per_path'``, the number of root-to-leaf paths through it.",
}
POLICY = {
    "kl_in_reward": "KL coefficient (beta) of the penalty in the reward, in reward per nat of the "
    "whole attack; 0 is off. The optimal policy is then the reference reweighted by "
    "exp(reward / kl_in_reward).",
    "kl_in_loss": "KL coefficient (beta) of the penalty in the loss, reduced as the policy loss "
    "is; 0 is off. With both coefficients 0 the reference is never run.",
    "kl_estimator": "KL estimator in the loss: ``'k1'``, ``'k2'`` or ``'k3'``; None is k3. In the "
    "reward it is always k1.",
    "kl_corrected": "Whether the penalty in the loss is weighted by the probability ratio, see "
    "kl_gradient; False differentiates the plain estimate, as the paper of GRPO does.",
    "kl_gradient": "Gradient of the penalty in the loss: ``'token'``, of the KL of each token with "
    "the tokens before it held fixed, as in TRL; ``'sequence'``, of the KL of the whole attack, "
    "exact and of higher variance. See `kl_penalty`.",
    "kl_target": "Target KL of a whole attack, in nats: kl_in_reward becomes the initial value of "
    "an adaptive coefficient. None keeps it constant.",
    "kl_horizon": "Number of attacks over which the adaptive coefficient corrects the error; "
    "larger is slower.",
    "entropy_coef": "Coefficient of the entropy bonus in the loss, in reward per nat of each "
    "token; 0 is off. Its gradient is that of kl_gradient, see `EntropyBonus`.",
    "entropy_target": "Target entropy in nats per token: entropy_coef becomes the initial value of "
    "an adaptive coefficient, which rises below the target. None keeps it constant.",
    "entropy_horizon": "As kl_horizon, for the entropy.",
    "epochs": "Number of passes over the batches of one experience; at least 1.",
    "old_logprobs": "Source of the log-probabilities under the sampling policy: ``'sampled'``, "
    "those that the sampler returned, at no cost; ``'scored'``, one more forward pass. In half "
    "precision the two differ by some hundredths of a nat per token. ``'corrected'`` scores them "
    "and weights the policy loss by the ratio to the sampler's, for samplers whose policy differs, "
    "such as an inference engine.",
    "correction": "With old_logprobs ``'corrected'``: ``'sequence_mask'``, the ratio of the whole "
    "attack, 0 above the cap; ``'token_truncation'``, the ratio of each token, at most the cap. "
    "See `astra_rl.algorithms.mismatch.MismatchCorrection`.",
    "correction_cap": "Largest such ratio, positive; None is 3 for ``'sequence_mask'`` and 2 for "
    "``'token_truncation'``.",
    **WEIGHTING,
    "format_pattern": "Regular expression of format tokens, whose negative advantages are set to "
    "zero, see `FormatMask`. None masks nothing.",
}
CRITIC = {
    "value_coef": "Coefficient of the value loss; positive.",
    "value_clip": "Clip range of the change of a value estimate within one experience, see "
    "`value_loss`; infinity does not clip.",
}
GAE = {
    "gamma": "Discount per token, in [0, 1].",
    "gae_lambda": "Lambda of generalised advantage estimation, in [0, 1]: 0 is the one-step TD "
    "error, 1 the Monte Carlo return.",
}
PAIRS = {
    "pairs": "Which siblings make a pair: ``'best_worst'``, the best against the worst; ``'all'``, "
    "each against every worse one; or a function, see `Matching`.",
    "min_gap": "Minimum difference of rewards of a pair; ties are always dropped.",
    **CREDIT,
    **WEIGHTING,
}
PAIR_LOSS = {
    "beta": "Strength of the KL regularisation towards the reference; positive.",
    "reduce": "Log-probability of an attack: the ``'sum'`` or the ``'mean'`` over its tokens.",
}
REPLAY = {
    "replay": "Capacity of the replay buffer, in attacks; 0 disables it.",
    "replay_share": "Share of replayed attacks in what an experience trains on, in [0, 1).",
    "replay_similarity": "Jaccard similarity of words, in (0, 1], from which on two attacks of one "
    "context are duplicates; the one with the higher reward stays.",
}
EXPLORATION = {
    "tempered_share": "Share of experiences sampled at another temperature, in [0, 1].",
    "temperatures": "Bounds of these sampling temperatures, drawn uniformly; both positive.",
}
BALANCE = {
    "temperature": "Reward temperature: a reward of 1 multiplies the target probability of an "
    "attack by exp(1 / temperature); positive.",
    "reference_temperature": "Divisor of the reference log-probability in log R; None leaves the "
    "reference out.",
    **REPLAY,
    "replay_min_reward": "Minimum reward of an attack to enter the replay buffer.",
    "replay_temperature": "Replayed attacks are drawn with weight exp(reward / "
    "replay_temperature); positive. None: temperature.",
    **EXPLORATION,
    "annealing": "Initial divisor of log R, which delays convergence to early finds; 1 is off.",
    "annealing_experiences": "Number of experiences in which the divisor falls linearly to 1.",
}
