#include "sources/settings.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace xgen::sources {
namespace {

constexpr std::size_t kMaxToken = 4096;

bool is_true(const std::optional<std::string>& value) {
  if (!value) return false;
  std::string upper = *value;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return upper == "1" || upper == "ON" || upper == "YES" || upper == "TRUE";
}

std::string trimmed(std::string text) {
  const auto blank = [](unsigned char c) { return std::isspace(c) != 0; };
  while (!text.empty() && blank(static_cast<unsigned char>(text.back()))) text.pop_back();
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), blank));
  return text;
}

// "~/x" and "$NAME/x" or "${NAME}/x", as Python's expanduser and expandvars do; an unknown variable stays as it is.
std::string expanded(std::string path, const Environment& environment, const std::string& home) {
  if (path == "~" || path.starts_with("~/")) path.replace(0, 1, home);
  std::string out;
  for (std::size_t i = 0; i < path.size();) {
    if (path[i] != '$') {
      out += path[i++];
      continue;
    }
    const bool braces = i + 1 < path.size() && path[i + 1] == '{';
    const std::size_t begin = i + (braces ? 2 : 1);
    std::size_t end = begin;
    while (end < path.size() && (std::isalnum(static_cast<unsigned char>(path[end])) != 0 || path[end] == '_')) ++end;
    const bool whole = end > begin && (!braces || (end < path.size() && path[end] == '}'));
    const auto value = whole ? environment(path.substr(begin, end - begin)) : std::nullopt;
    const std::size_t next = whole && braces ? end + 1 : std::max(end, i + 1);
    out += value ? *value : path.substr(i, next - i);
    i = next;
  }
  return out;
}

Result<std::string> endpoint(const Environment& environment, const std::string& name, const std::string& fallback) {
  auto value = environment(name);
  std::string url = value ? *value : fallback;
  while (url.ends_with('/')) url.pop_back();
  if (url.empty()) return url;
  const auto parsed = http::parse_url(url);
  if (!parsed) return make_error(ErrorCode::invalid_argument, name + ": " + parsed.error().message);
  if (parsed->target.find('?') != std::string::npos)
    return make_error(ErrorCode::invalid_argument, name + ": expected an address without a query");
  return url;
}

// One that would break a header is no token.
Status check_token(const std::string& token, const std::string& from) {
  const bool fine = token.size() <= kMaxToken &&
                    std::all_of(token.begin(), token.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  if (fine) return {};
  return make_error(ErrorCode::invalid_argument, from + ": not a token: it holds blanks or other strange characters");
}

Status read_hub(HubSettings& hub, const Environment& environment, const std::string& home,
                const std::string& user_cache) {
  auto url = endpoint(environment, "HF_ENDPOINT", "https://huggingface.co");
  if (!url) return std::move(url).error();
  hub.endpoint = *std::move(url);
  const auto path_of = [&](const char* name, const std::string& fallback) {
    return expanded(environment(name).value_or(fallback), environment, home);
  };
  const std::string hf_home = path_of("HF_HOME", user_cache + "/huggingface");
  hub.cache = path_of("HF_HUB_CACHE", environment("HUGGINGFACE_HUB_CACHE").value_or(hf_home + "/hub"));
  hub.offline =
      is_true(environment("HF_HUB_OFFLINE") ? environment("HF_HUB_OFFLINE") : environment("TRANSFORMERS_OFFLINE"));
  if (is_true(environment("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return {};
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (!hub.token.empty()) break;
    hub.token = trimmed(environment(name).value_or(""));
    hub.token_from = name;
  }
  if (hub.token.empty()) {
    hub.token_from = path_of("HF_TOKEN_PATH", hf_home + "/token");
    std::ifstream in(hub.token_from, std::ios::binary);
    std::string text(kMaxToken + 1, '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(std::max<std::streamsize>(in.gcount(), 0)));
    hub.token = trimmed(std::move(text));
  }
  if (hub.token.empty()) hub.token_from.clear();
  return check_token(hub.token, hub.token_from);
}

Status read_s3(S3Settings& s3, const Environment& environment, const std::string& cache) {
  auto url = endpoint(environment, environment("AWS_ENDPOINT_URL_S3") ? "AWS_ENDPOINT_URL_S3" : "AWS_ENDPOINT_URL", "");
  if (!url) return std::move(url).error();
  s3.endpoint = *std::move(url);
  s3.region = environment("AWS_REGION").value_or(environment("AWS_DEFAULT_REGION").value_or("us-east-1"));
  const bool plain =
      std::all_of(s3.region.begin(), s3.region.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '-'; });
  if (!plain)
    return make_error(ErrorCode::invalid_argument, "AWS_REGION: not the name of a region: '" + s3.region + "'");
  s3.cache = cache + "/s3";
  const auto id = environment("AWS_ACCESS_KEY_ID");
  const auto secret = environment("AWS_SECRET_ACCESS_KEY");
  if (id.has_value() != secret.has_value()) {
    return make_error(ErrorCode::invalid_argument, std::string(id ? "AWS_SECRET_ACCESS_KEY" : "AWS_ACCESS_KEY_ID") +
                                                       ": missing; the other half of the key is set");
  }
  if (!id) return {};
  s3.keys = AwsKeys{trimmed(*id), trimmed(*secret), trimmed(environment("AWS_SESSION_TOKEN").value_or(""))};
  if (Status fine = check_token(s3.keys->id, "AWS_ACCESS_KEY_ID"); !fine) return fine;
  return check_token(s3.keys->session_token, "AWS_SESSION_TOKEN");
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value != nullptr && *value != '\0') return value;
    if (name != "HOME") return {};
    passwd entry{};
    passwd* found = nullptr;
    char buffer[4096];
    if (::getpwuid_r(::geteuid(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr) return {};
    return found->pw_dir;
  };
}

Result<Settings> settings_from(const Environment& environment, const std::string& cache) {
  Settings settings;
  const std::string home = environment("HOME").value_or("/");
  const std::string user_cache = environment("XDG_CACHE_HOME").value_or(home + "/.cache");
  if (Status read = read_hub(settings.hub, environment, home, user_cache); !read) return std::move(read).error();
  const std::string own = cache.empty() ? user_cache + "/xgen-model" : expanded(cache, environment, home);
  if (Status read = read_s3(settings.s3, environment, own); !read) return std::move(read).error();
  return settings;
}

}  // namespace xgen::sources
