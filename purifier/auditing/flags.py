"""The catalogue of flags: signs that an audit's figures are too high to be believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlagKind:
    """What a flag means: for the report, the command line and the documentation alike."""

    name: str
    raised_if: str
    why: str
    what_to_do: str


FLAGS: dict[str, FlagKind] = {
    kind.name: kind
    for kind in (
        FlagKind(
            "probe-failed",
            "what is tried on the guard itself breaks down",
            "The signs below were not looked for, in which masked gradients show (Athalye et al. 2018, section 3.1).",
            "mend what the evidence names; the figures of attacks that ran stand, but say less",
        ),
        FlagKind(
            "zero-gradient",
            "the gradient of the margin loss is exactly zero all over the image for more than 1% of images, or cut off",
            "Gradient attacks stand still where there is no gradient (Athalye et al. 2018, section 3: shattered and "
            "vanishing gradients); what they leave right is no robustness.",
            "declare gradient = 'surrogate' and write a surrogate that follows the purifier, for the route bpda",
        ),
        FlagKind(
            "nan-gradient",
            "the gradient of the margin loss has NaN or infinity for any image",
            "A gradient that is no number leads no attack anywhere (Athalye et al. 2018, section 3: numerical "
            "instability shatters gradients).",
            "find the operation that has no derivative there (sqrt, log or a norm at 0) and keep it away from the edge",
        ),
        FlagKind(
            "probabilities",
            "the classifier's outputs are not negative and sum to 1 for every image: a softmax is fed as logits",
            "A softmax is flat in float32 where it is sure, and losses made for logits vanish on it (Carlini et al. "
            "2019, on numerically stable losses; Croce & Hein 2020, section 4).",
            "give the classifier without its softmax",
        ),
        FlagKind(
            "nondeterministic",
            "the same pixels and declared noise give other logits, beyond rounding, for more than 1% of images",
            "Randomness nobody declared is not averaged over, so gradients are those of another model than the one "
            "judged (Athalye et al. 2018, section 3: stochastic gradients).",
            "move all randomness into the purifier's draw(), and switch dropout and the like off in the classifier",
        ),
        FlagKind(
            "random-without-eot",
            "the purifier draws noise and gradients are those of one draw (eot=1)",
            "One draw's gradient is mostly noise; an attack has to average over draws (Athalye et al. 2018, section "
            "4.2: expectation over transformation).",
            "audit with eot=10 or more, until more draws change nothing",
        ),
        FlagKind(
            "batch-norm",
            "a BatchNorm layer uses the batch's statistics: it stays in training mode or has no running statistics",
            "An image is then judged by the company it is in, which an attack crafted in another batch does not know "
            "(Tramer et al. 2020: attack the model as it will run).",
            "put the layer into evaluation mode with running statistics from training",
        ),
        FlagKind(
            "batch-dependent",
            "an image's logits alone, or in another order of the batch, are not those in the batch, beyond rounding",
            "A figure that depends on which images are tried together is no property of the guard (Tramer et al. "
            "2020: attack the model as it will run).",
            "treat each image for itself: no means, sorting or mixing over the first dimension",
        ),
        FlagKind(
            "unbounded",
            "with a budget that reaches a grey image PGD leaves more images right than chance and its margin of error",
            "An attack that may change everything must always win (Athalye et al. 2018, section 3.1; Carlini et al. "
            "2019, on accuracy against the budget); one that does not is lost.",
            "mend the gradient first (see the other flags), then give the attack more steps and restarts",
        ),
        FlagKind(
            "one-step-wins",
            "one gradient step of length eps fools more images than 20 of PGD, beyond luck (McNemar's test at 1%)",
            "Iterating can only help where gradients are of use (Athalye et al. 2018, section 3.1; Carlini et al. "
            "2019, on iterative attacks).",
            "look for gradients that are right at clean images only; attack through a surrogate, with more restarts",
        ),
        FlagKind(
            "noise-wins",
            "random noise within the budget fools more than 1% of images that PGD does not",
            "An attack that follows gradients must find what blind search finds (Athalye et al. 2018, section 3.1).",
            "do not trust the gradient: write a better surrogate, and add query attacks",
        ),
        FlagKind(
            "no-rise",
            "with twice the budget PGD fools fewer images, beyond luck (McNemar's test at 1%)",
            "The larger budget holds the smaller one, so an attack that does worse there is lost (Athalye et al. 2018, "
            "section 3.1; Carlini et al. 2019, on accuracy against the budget).",
            "look for gradients that vanish away from clean images; attack with more steps and restarts",
        ),
        FlagKind(
            "black-box-wins",
            "attacks by queries fool more than 1% of images that no white-box gradient attack fools",
            "Who sees gradients sees more than who asks for outputs; otherwise they mislead (Athalye et al. 2018, "
            "section 3.1; Carlini et al. 2019, on gradient-free attacks).",
            "write a better surrogate or attack with more steps, restarts and losses, until the white-box attack leads",
        ),
        FlagKind(
            "transfer-wins",
            "images made for the classifier alone fool the guard for more than 1% of images that no white-box gradient "
            "attack fools",
            "Who knows the purifier must do better than who does not (Carlini et al. 2019, on transfer attacks; Tramer "
            "et al. 2020).",
            "write a better surrogate or attack with more steps, restarts and losses, until the white-box attack leads",
        ),
        FlagKind(
            "not-monotone",
            "the worst case at a larger budget is better than at a smaller one by more than 1% of images, beyond luck",
            "The larger budget holds the smaller one (Athalye et al. 2018, section 3.1; Carlini et al. 2019, on "
            "accuracy against the budget).",
            "take the lower figure for both, and attack with more steps and restarts",
        ),
        FlagKind(
            "not-converged",
            "the same attack with more steps or restarts fools more than 1% more images, beyond luck",
            "Where more work still finds more, the figure tells of the attacker's patience (Carlini et al. 2019, on "
            "attacks that have converged; Tramer et al. 2020).",
            "double steps and restarts until nothing changes",
        ),
        FlagKind(
            "eot-not-flat",
            "averaged over more draws the same attack still fools more than 1% more images, beyond luck",
            "The gradients were still noisy at fewer draws, and may be at the most (Athalye et al. 2018, section 4.2; "
            "Tramer et al. 2020, on randomised defences).",
            "raise eot until the accuracy is flat, and quote that figure",
        ),
    )
}
