"""The catalogue of flags: signs that an audit's figures are too high to be trusted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlagKind:
    """The meaning of a flag, as shown by the command line and the documentation."""

    name: str
    raised_if: str
    why: str
    what_to_do: str


FLAGS: dict[str, FlagKind] = {
    kind.name: kind
    for kind in (
        FlagKind(
            "probe-failed",
            "a self-check of the guard fails with an error",
            "Not all signs of masked gradients (Athalye et al. 2018, section 3.1) were looked for.",
            "fix the error in the evidence; the results of attacks that ran are valid, but prove less",
        ),
        FlagKind(
            "zero-gradient",
            "the gradient of the margin loss is exactly zero everywhere in the image for more than 1% of images, or is "
            "cut off",
            "Gradient attacks do not move where there is no gradient (Athalye et al. 2018, section 3: shattered and "
            "vanishing gradients); images that they leave right are not evidence of robustness.",
            "declare gradient = 'surrogate' and write a surrogate that follows the purifier, for the route bpda",
        ),
        FlagKind(
            "nan-gradient",
            "the gradient of the margin loss contains NaN or infinity for any image",
            "An attack cannot follow a gradient that is not a number (Athalye et al. 2018, section 3: numerical "
            "instability shatters gradients).",
            "find the operation that has no derivative there (sqrt, log or a norm at 0) and keep its input away from "
            "that point",
        ),
        FlagKind(
            "probabilities",
            "the classifier's outputs are nonnegative and sum to 1 for every image: they are a softmax, not logits",
            "A softmax is flat in float32 where it is confident, and losses made for logits vanish on it (Carlini et "
            "al. 2019, on numerically stable losses; Croce & Hein 2020, section 4).",
            "declare them with --output-kind probabilities or binary-probability (output_kind= in Python), or remove "
            "the softmax or sigmoid from the classifier",
        ),
        FlagKind(
            "nondeterministic",
            "the same pixels and declared noise give different logits, beyond rounding, for more than 1% of images",
            "Undeclared randomness is not averaged over, so the gradients belong to a different model than the one "
            "judged (Athalye et al. 2018, section 3: stochastic gradients).",
            "move all randomness into the purifier's draw(), and turn off dropout and similar layers in the classifier",
        ),
        FlagKind(
            "random-without-eot",
            "the purifier draws noise, and gradients use a single draw (eot=1)",
            "The gradient of one draw is mostly noise; an attack has to average over draws (Athalye et al. 2018, "
            "section 4.2: expectation over transformation).",
            "audit with --eot 10 or more (eot=10 in Python), and raise it until more draws change nothing",
        ),
        FlagKind(
            "batch-norm",
            "a BatchNorm layer uses batch statistics: it stays in training mode or has no running statistics",
            "The answer for an image then depends on the rest of its batch, which an attack crafted in another batch "
            "does not know (Tramer et al. 2020: attack the model as it will be run).",
            "put the layer into evaluation mode, with running statistics from training",
        ),
        FlagKind(
            "batch-dependent",
            "an image's logits, clean or moved at random within the threat, change, beyond rounding, when it is alone "
            "or the batch is reordered",
            "A result that depends on which images share a batch is not a property of the guard (Tramer et al. 2020: "
            "attack the model as it will be run).",
            "treat each image independently: no means, sorting or mixing over the batch dimension",
        ),
        FlagKind(
            "unbounded",
            "with a budget that can turn any image grey, PGD leaves more images right than chance plus its margin of "
            "error",
            "An attack that may change everything must always succeed (Athalye et al. 2018, section 3.1; Carlini et "
            "al. 2019, on robustness against the budget); if it does not, the attack is broken.",
            "fix the gradient first (see the other flags), then give the attack more steps and restarts",
        ),
        FlagKind(
            "one-step-wins",
            "one gradient step of length eps fools more images than 20 steps of PGD, beyond chance (McNemar's test at "
            "1%)",
            "With useful gradients more steps can only help (Athalye et al. 2018, section 3.1; Carlini et al. 2019, on "
            "iterative attacks).",
            "look for gradients that are correct only at clean images; attack through a surrogate, with more restarts",
        ),
        FlagKind(
            "noise-wins",
            "random noise within the budget fools more than 1% of images that PGD does not fool",
            "An attack that follows gradients should find what random search finds (Athalye et al. 2018, section 3.1).",
            "do not trust the gradient: write a better surrogate, and add query attacks",
        ),
        FlagKind(
            "no-rise",
            "with twice the budget PGD fools fewer images, beyond chance (McNemar's test at 1%)",
            "The larger budget contains the smaller one, so an attack that does worse with it is broken (Athalye et "
            "al. 2018, section 3.1; Carlini et al. 2019, on robustness against the budget).",
            "look for gradients that vanish away from clean images; attack with more steps and restarts",
        ),
        FlagKind(
            "black-box-wins",
            "query attacks fool more than 1% of images that no white-box gradient attack fools",
            "Gradients tell an attacker more than outputs do; if queries find more, the gradients mislead (Athalye et "
            "al. 2018, section 3.1; Carlini et al. 2019, on gradient-free attacks).",
            "write a better surrogate, or attack with more steps, restarts and losses, until the white-box attack wins",
        ),
        FlagKind(
            "transfer-wins",
            "attacks on the classifier alone fool the guard on more than 1% of images that no white-box gradient "
            "attack fools",
            "An attacker who knows the purifier should do better than one who does not (Carlini et al. 2019, on "
            "transfer attacks; Tramer et al. 2020).",
            "write a better surrogate, or attack with more steps, restarts and losses, until the white-box attack wins",
        ),
        FlagKind(
            "not-monotone",
            "the worst case at a larger budget leaves more images right than at a smaller one: more than 1% of all, "
            "and beyond chance",
            "The larger budget contains the smaller one (Athalye et al. 2018, section 3.1; Carlini et al. 2019, on "
            "robustness against the budget).",
            "use the lower figure for both, and attack with more steps and restarts",
        ),
        FlagKind(
            "not-converged",
            "the same attack with more steps or restarts fools further images, more than 1% of all and beyond chance",
            "While more effort still finds more, the figure measures the attacker's patience (Carlini et al. 2019, "
            "on attacks that have converged; Tramer et al. 2020).",
            "double the steps and restarts until nothing changes",
        ),
        FlagKind(
            "eot-not-flat",
            "the same attack, averaged over more draws, fools further images, more than 1% of all and beyond chance",
            "The gradients were still noisy with fewer draws, and may be with the most draws tried (Athalye et al. "
            "2018, section 4.2; Tramer et al. 2020, on randomised defences).",
            "raise eot until the figure is flat, and report that figure",
        ),
        FlagKind(
            "paths-disagree",
            "two ways to ask the model give different results, beyond rounding, for more than 1% of images: purify and "
            "purify_and_score, with and without gradients, purify and a surrogate that declares to purify, the model's "
            "own answers and the logits that attacks see",
            "Then the attacks are aimed at another model than the one that is used (Tramer et al. 2020: attack the "
            "model as it will be run).",
            "make all methods of the purifier return the same results, whether or not gradients are recorded",
        ),
        FlagKind(
            "stateful",
            "answers for more than 1% of images near others change once the others have been shown, or once the "
            "attacks have run, or weights or buffers change during the audit",
            "A model that remembers what it has seen is a different one when attacked and when used, and can return "
            "the clean images of the audit itself (Tramer et al. 2020: attack the model as it will be run).",
            "make purify and the classifier pure functions of their arguments: keep no images, counters or statistics",
        ),
        FlagKind(
            "gradient-wrong",
            "the gradient of a random sum of logits, declared exact, differs from finite differences along random "
            "directions for more than 25% of images, clean or moved at random within the threat, or in float32 the "
            "guard has other answers or another gradient than in float64",
            "Attacks follow a gradient that is not that of the model (Athalye et al. 2018, section 3: shattered and "
            "wrong gradients; Carlini et al. 2019, on checking gradients).",
            "remove detach, no_grad, straight-through estimators and clamp (use purifier.into_range) from purify, or "
            "declare gradient = 'surrogate'",
        ),
        FlagKind(
            "discontinuous",
            "on more than half of the ways from one image to another with another answer, the margin jumps over 0 by "
            "more than 10% of its clean value",
            "A gradient that is right on either side of a jump does not lead across it (Athalye et al. 2018, section "
            "3: shattered gradients).",
            "give the logits of all classes, not only of the answer; declare gradient = 'surrogate' where a purifier "
            "chooses between finished images",
        ),
        FlagKind(
            "stronger-self-check",
            "the self-checks' own PGD fools more images than all white-box attacks of the audit, one of which takes "
            "several steps, beyond chance (McNemar's test at 1%)",
            "A plain attack of 20 steps should never beat those that the result rests on (Carlini et al. 2019, on "
            "attacks that have converged).",
            "attack with more steps and restarts, or with the preset standard",
        ),
        FlagKind(
            "weak-attacks",
            "attacks ran, none of them took more than one step along a white-box route, and some images are still "
            "right; where there are no gradients: no query attack asked at least 100 times about each of those",
            "What one step, noise or queries alone leave right is hardly evidence (Carlini et al. 2019, on iterative "
            "attacks and on attacks that have converged).",
            "add an attack that takes steps along exact or bpda, such as pgd, or square if there are no gradients; or "
            "use a preset",
        ),
        FlagKind(
            "at-chance",
            "the undefended or the guarded model has no more clean images right than always answering the most "
            "frequent label, one-sided at 5%",
            "Robustness of a model that does not classify says nothing (Carlini et al. 2019, on clean images).",
            "check classifier, weights, labels and preprocessing; use more images, and images of several classes",
        ),
        FlagKind(
            "set-up",
            "another preprocessing or order of the labels makes more clean images right, beyond chance (McNemar's test "
            "at 1%)",
            "The audit measured a mistake in its set-up (Carlini et al. 2019, on clean images and on the model as it "
            "is used).",
            "fix what the evidence names: --preprocessing (preprocessing= in Python), or the labels of the data",
        ),
        FlagKind(
            "nothing-attacked",
            "attacks were requested, but all of them failed, or no image was right before the attack",
            "Without an attack on an image that is right there is no evidence (Carlini et al. 2019).",
            "fix the errors in the rows, or what makes every clean image wrong",
        ),
        FlagKind(
            "certificate-broken",
            "an attack fools an image that is certified at a budget at least as large",
            "Bounds hold for every image within the budget (Gowal et al. 2018, section 3); one that an attack "
            "contradicts is wrong, or is about other arithmetic than what runs.",
            "do not trust the certificates; fix the purifier's reachable(), or settings that make arithmetic coarser",
        ),
        FlagKind(
            "detector-ignored",
            "the guard marks images as rejected, and no attack that finished asked for the purifier's scores",
            "A detector has to be attacked together with the classifier (Tramer et al. 2020, on detectors; Carlini et "
            "al. 2019, on adaptive attacks).",
            "add the attack joint, or joint-square if there are no gradients (both for linf and l2), or use a preset",
        ),
    )
}
