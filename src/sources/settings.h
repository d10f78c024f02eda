// What the environment and the configuration say about where models come from and where they are kept.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "sources/sigv4.h"
#include "sources/transfer.h"

namespace xgen::sources {

struct HubSettings {
  std::string endpoint;    // "https://huggingface.co"
  std::string token;       // empty: none
  std::string token_from;  // "HF_TOKEN", or the token's file
  std::string cache;       // the folder of models--org--repo folders
  bool offline = false;
};

struct S3Settings {
  std::string endpoint;  // empty: AWS
  std::string region;
  std::optional<AwsKeys> keys;  // none: anonymous
  std::string cache;
};

struct Settings {
  HubSettings hub;
  S3Settings s3;
  TransferOptions transfer;
};

// Value of an environment variable; nothing if it is unset or empty. An unset HOME is that of the user's entry.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment process_environment();

// Understood: HF_ENDPOINT, HF_TOKEN (HUGGING_FACE_HUB_TOKEN), HF_TOKEN_PATH, HF_HUB_DISABLE_IMPLICIT_TOKEN, HF_HOME,
// HF_HUB_CACHE (HUGGINGFACE_HUB_CACHE), HF_HUB_OFFLINE (TRANSFORMERS_OFFLINE); AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL,
// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_DEFAULT_REGION; XDG_CACHE_HOME, HOME.
// `cache`: the configured folder for what does not come from the Hub; empty: $XDG_CACHE_HOME/xgen-model or
// ~/.cache/xgen-model. Errors: invalid_argument naming the variable.
Result<Settings> settings_from(const Environment& environment, const std::string& cache);

}  // namespace xgen::sources
