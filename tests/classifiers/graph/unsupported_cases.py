"""Cases of ONNX that ``GraphModule`` does not pass, with the reason. A test fails if one of them passes after all."""

from __future__ import annotations

from collections.abc import Mapping

TEXT = (
    *("ai_onnx_ml_label_encoder_string_int", "ai_onnx_ml_label_encoder_string_int_no_default"),
    *("ai_onnx_ml_label_encoder_tensor_mapping", "ai_onnx_ml_label_encoder_tensor_value_only_mapping"),
    *("equal_string", "equal_string_broadcast"),
    *("regex_full_match_basic", "regex_full_match_email_domain", "regex_full_match_empty"),
    *("string_concat", "string_concat_broadcasting", "string_concat_empty_string", "string_concat_utf8"),
    *("string_concat_zero_dimensional", "string_split_basic", "string_split_consecutive_delimiters"),
    *("string_split_empty_string_delimiter", "string_split_empty_tensor", "string_split_maxsplit"),
    *("string_split_no_delimiter", "strnormalizer_export_monday_casesensintive_lower"),
    *("strnormalizer_export_monday_casesensintive_nochangecase", "strnormalizer_export_monday_casesensintive_upper"),
    *("strnormalizer_export_monday_empty_output", "strnormalizer_export_monday_insensintive_upper_twodim"),
    "strnormalizer_nostopwords_nochangecase",
    *("tfidfvectorizer_tf_batch_onlybigrams_skip0", "tfidfvectorizer_tf_batch_onlybigrams_skip5"),
    *("tfidfvectorizer_tf_batch_uniandbigrams_skip5", "tfidfvectorizer_tf_only_bigrams_skip0"),
    *("tfidfvectorizer_tf_onlybigrams_levelempty", "tfidfvectorizer_tf_onlybigrams_skip5"),
    "tfidfvectorizer_tf_uniandbigrams_skip5",
)
DECODING = tuple(
    f"image_decoder_decode_{name}"
    for name in (
        *("bmp_rgb", "jpeg2k_rgb", "jpeg_bgr", "jpeg_grayscale", "jpeg_rgb"),
        *("png_rgb", "pnm_rgb", "tiff_rgb", "webp_rgb"),
    )
)
TRAINING = (
    *("adagrad", "adagrad_multiple", "adam", "adam_multiple"),
    *("momentum", "momentum_multiple", "nesterov_momentum"),
)
TREES = (
    *("ai_onnx_ml_binarizer", "ai_onnx_ml_tree_ensemble_set_membership"),
    "ai_onnx_ml_tree_ensemble_single_tree",
)
UNSUPPORTED: Mapping[str, tuple[str, ...]] = {
    "tensors of text": TEXT,
    "files of images": DECODING,
    "steps of optimisers": TRAINING,
    "trees and thresholds, which have no gradient": TREES,
    "audio": ("melweightmatrix",),
}

RANDOM = (
    *("bernoulli", "bernoulli_double", "bernoulli_double_expanded", "bernoulli_expanded"),
    *("bernoulli_seed", "bernoulli_seed_expanded"),
    *("training_dropout", "training_dropout_default", "training_dropout_default_mask", "training_dropout_mask"),
)
ROUNDING = ("attention_4d_causal_fp16_expanded", "dft_inverse", "dft_inverse_opset19")
UNCERTAIN: Mapping[str, tuple[str, ...]] = {
    "random numbers of NumPy's generator are expected": RANDOM,
    "the tolerance is below the rounding of float16, or of a Fourier transform whose result is 0": ROUNDING,
}
"""Cases that may pass by chance, or on another machine."""

UNSUPPORTED_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "": (
        *("ImageDecoder", "MelWeightMatrix", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"),
        "TfIdfVectorizer",
    ),
    "ai.onnx.ml": (
        *("Binarizer", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer", "Imputer", "LabelEncoder"),
        *("LinearClassifier", "LinearRegressor", "Normalizer", "OneHotEncoder", "SVMClassifier", "SVMRegressor"),
        *("Scaler", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
    ),
    "ai.onnx.preview.training": ("Adagrad", "Adam", "Gradient", "Momentum"),
}
"""Operators of ONNX, by domain, that are in no table and no function; docs/onnx.md lists them too."""
