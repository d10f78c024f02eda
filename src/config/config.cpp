#include "config/config.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <sstream>
#include <system_error>
#include <type_traits>
#include <utility>

#include "base/bytes.h"
#include "base/json_text.h"
#include "base/model_source.h"
#include "base/split_name.h"
#include "base/units.h"
#include "base/utf8.h"

namespace xgen::config {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 20;
constexpr std::size_t kMaxModels = 256;
constexpr std::size_t kMaxFallbacks = 16;  // of one model
constexpr std::size_t kMaxApiKeys = 10'000;
constexpr std::size_t kMaxFaults = 50;
constexpr milliseconds kShortest{100};  // of time-outs that would refuse everybody if they were 0

// What was expected instead, or nothing if the value was read.
using Fault = std::optional<std::string>;

// One key of section S: how it is written, read, shown and explained.
template <class S>
struct Key {
  std::string_view name;
  std::string type;
  std::string_view help;
  std::function<Fault(S&, const YAML::Node&)> read;
  std::function<std::string(const S&)> show;  // the default in the reference
  // Of a list or a mapping, which `read` has only looked at as a whole: reads one entry (a list's has no key), so that
  // the fault of each is told.
  std::function<Fault(S&, const YAML::Node& key, const YAML::Node& value)> read_entry = {};
  // The value as a file holds it, where that is not what `show` says; empty if none is set.
  std::function<std::string(const S&)> yaml = {};
};

Fault expected(std::string what, const YAML::Node& node) {
  what = "expected " + what;
  if (node.IsScalar()) return what + ", got '" + node.Scalar().substr(0, 100) + "'";
  if (node.IsSequence()) return what + (node.size() == 0 ? ", got an empty list" : ", got a list");
  if (node.IsMap()) return what + ", got a mapping";
  return what + ", got nothing";
}

std::string duration_text(milliseconds value) {
  const auto ms = value.count();
  if (ms % 60'000 == 0 && ms != 0) return std::to_string(ms / 60'000) + "m";
  if (ms % 1000 == 0) return std::to_string(ms / 1000) + "s";
  return std::to_string(ms) + "ms";
}

std::string bytes_text(std::uint64_t value) {
  for (const auto& [unit, name] : {std::pair{30, "GiB"}, {20, "MiB"}, {10, "KiB"}}) {
    if (value != 0 && value % (std::uint64_t{1} << unit) == 0) return std::to_string(value >> unit) + name;
  }
  return std::to_string(value);
}

// YAML reads JSON's strings and lists as they are.
std::string in_quotes(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

std::string in_brackets(const std::vector<std::string>& list) {
  std::string out;
  for (const std::string& each : list) out += (out.empty() ? "" : ", ") + in_quotes(each);
  return "[" + out + "]";
}

bool printable(std::string_view text) {
  return is_valid_utf8(text) &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

constexpr std::string_view kNameShape = "a name of 1 to 200 characters without spaces";
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 200 && printable(text) && text.find(' ') == std::string_view::npos;
}

Fault read_name(std::string& name, const YAML::Node& node) {
  if (!node.IsScalar() || !is_name(node.Scalar())) return expected(std::string(kNameShape), node);
  name = node.Scalar();
  return {};
}
// A bad one leaves the list as it is.
Fault append_name(std::vector<std::string>& names, const YAML::Node& node) {
  std::string name;
  if (Fault fault = read_name(name, node)) return fault;
  names.push_back(std::move(name));
  return {};
}

// Key::yaml of a field that may be unset: nothing then.
template <class S, class T, class Text>
std::function<std::string(const S&)> set_only(T S::*field, Text text) {
  return [=](const S& section) -> std::string {
    if constexpr (requires { (section.*field).has_value(); }) {
      return (section.*field).has_value() ? text(*(section.*field)) : std::string();
    } else {
      return text(section.*field);
    }
  };
}

template <class S, class T>
Key<S> integer(std::string_view name, T S::*field, std::int64_t low, std::int64_t high, std::string_view help) {
  const std::string range = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  return {name,
          range,
          help,
          [=](S& section, const YAML::Node& node) -> Fault {
            std::int64_t value = 0;
            if (!node.IsScalar()) return expected(range, node);
            const std::string& text = node.Scalar();
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high) {
              return expected(range, node);
            }
            section.*field = static_cast<int>(value);
            return {};
          },
          [=](const S& section) -> std::string {
            if constexpr (requires { (section.*field).has_value(); }) {
              return (section.*field).has_value() ? std::to_string(*(section.*field)) : "planned";
            } else {
              return std::to_string(section.*field);
            }
          },
          {},
          set_only(field, [](auto value) { return std::to_string(value); })};
}

template <class S>
Key<S> duration(std::string_view name, milliseconds S::*field, milliseconds low, std::string_view help) {
  return {name, "a duration", help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar()) return expected("a duration such as 250ms, 30s or 10m", node);
            auto value = parse_duration(node.Scalar());
            if (!value) return value.error().message;
            if (*value < low) return expected("at least " + duration_text(low), node);
            section.*field = *value;
            return {};
          },
          [=](const S& section) { return duration_text(section.*field); }};
}

template <class S, class T>
Key<S> size(std::string_view name, T S::*field, std::uint64_t low, std::string_view help) {
  return {name,
          "a size",
          help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar()) return expected("a size such as 512MiB or 2GiB", node);
            auto value = parse_bytes(node.Scalar());
            if (!value) return value.error().message;
            if (*value < low) return expected("at least " + bytes_text(low), node);
            section.*field = *value;
            return {};
          },
          [=](const S& section) -> std::string {
            if constexpr (requires { (section.*field).has_value(); }) {
              return (section.*field).has_value() ? bytes_text(*(section.*field)) : "planned";
            } else {
              return bytes_text(section.*field);
            }
          },
          {},
          set_only(field, bytes_text)};
}

template <class S>
Key<S> boolean(std::string_view name, bool S::*field, std::string_view help) {
  return {name, "true or false", help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar() || (node.Scalar() != "true" && node.Scalar() != "false")) {
              return expected("true or false", node);
            }
            section.*field = node.Scalar() == "true";
            return {};
          },
          [=](const S& section) -> std::string { return section.*field ? "true" : "false"; }};
}

// A value that must be one of a list. `set` receives its index.
template <class S>
Key<S> choice(std::string_view name, const std::vector<std::string_view>& names,
              std::function<void(S&, std::size_t)> set, std::function<std::size_t(const S&)> get,
              std::string_view help) {
  std::string list;
  for (const std::string_view each : names) list.append(list.empty() ? "" : " | ").append(each);
  return {name, list, help,
          [=](S& section, const YAML::Node& node) -> Fault {
            const auto it = node.IsScalar() ? std::find(names.begin(), names.end(), node.Scalar()) : names.end();
            if (it == names.end())
              return expected(names.size() == 1 ? list + " (the only value in this version)" : list, node);
            if (set) set(section, static_cast<std::size_t>(it - names.begin()));
            return {};
          },
          [=](const S& section) { return std::string(names[get ? get(section) : 0]); }};
}

template <class S>
Key<S> choice(std::string_view name, std::vector<std::string_view> names, std::string S::*field,
              std::string_view help) {
  return choice<S>(
      name, names, [=](S& section, std::size_t i) { section.*field = names[i]; },
      [=](const S& section) {
        return static_cast<std::size_t>(std::find(names.begin(), names.end(), section.*field) - names.begin());
      },
      help);
}

template <class S>
Key<S> text(std::string_view name, std::string S::*field, std::string_view type, std::string_view help) {
  return {name,
          std::string(type),
          help,
          [=](S& section, const YAML::Node& node) -> Fault {
            if (!node.IsScalar() || node.Scalar().empty() || node.Scalar().size() > 4096 || !printable(node.Scalar())) {
              return expected(std::string(type), node);
            }
            section.*field = node.Scalar();
            return {};
          },
          [=](const S& section) { return (section.*field).empty() ? std::string("required") : section.*field; },
          {},
          [=](const S& section) { return (section.*field).empty() ? std::string() : in_quotes(section.*field); }};
}

template <class S>
Key<S> file(std::string_view name, std::string S::*field, std::string_view help) {
  Key<S> key = text(name, field, "a path", help);
  key.show = [](const S&) { return std::string("none"); };
  return key;
}

Fault read_memory_limit(MemoryLimit& limit, const YAML::Node& node) {
  constexpr std::string_view kWhat = "a share such as 80% or a size such as 8GiB";
  if (!node.IsScalar()) return expected(std::string(kWhat), node);
  const std::string& value = node.Scalar();
  if (!value.empty() && value.back() == '%') {
    double percent = 0;
    const char* const last = value.data() + value.size() - 1;
    const auto [end, error] = std::from_chars(value.data(), last, percent, std::chars_format::fixed);
    if (error != std::errc{} || end != last || !(percent > 0 && percent <= 100))
      return expected(std::string(kWhat), node);
    limit = {percent / 100, 0};
    return {};
  }
  auto bytes = parse_bytes(value);
  if (!bytes || *bytes == 0) return expected(std::string(kWhat), node);
  limit = {0, *bytes};
  return {};
}

std::string percent_text(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g%%", share * 100);
  return text;
}

// A list whose entries `read_entry` reads.
template <class S>
Key<S> list(std::string_view name, std::size_t most, std::string_view what, std::string_view help,
            std::function<Fault(S&, const YAML::Node&)> read_entry,
            std::function<std::vector<std::string>(const S&)> entries) {
  const std::string type = "a list of " + std::string(what);
  return {name,
          type,
          help,
          [=](S&, const YAML::Node& node) -> Fault {
            if (!node.IsSequence() || node.size() > most)
              return expected("a list of at most " + std::to_string(most) + " " + std::string(what), node);
            return {};
          },
          [](const S&) { return std::string("none"); },
          [=](S& section, const YAML::Node&, const YAML::Node& entry) { return read_entry(section, entry); },
          [=](const S& section) { return in_brackets(entries(section)); }};
}

Fault read_proxy(Server& server, const YAML::Node& node) {
  const auto range = node.IsScalar() ? IpRange::parse(node.Scalar()) : std::nullopt;
  if (!range) return expected("an address or a range such as 10.0.0.0/8 or fd00::/8", node);
  server.trusted_proxies.push_back(*range);
  return {};
}

Fault read_origin(Server& server, const YAML::Node& node) {
  const std::string text = node.IsScalar() ? node.Scalar() : "";
  const std::size_t scheme = text.find("://");
  const bool origin = scheme != std::string::npos && scheme > 0 && text.size() > scheme + 3 && text.size() <= 256 &&
                      std::all_of(text.begin(), text.end(),
                                  [](unsigned char c) { return c > 0x20 && c < 0x7f && std::isupper(c) == 0; }) &&
                      text.find_first_of("/?#@*,", scheme + 3) == std::string::npos;
  if (text != "*" && !origin)
    return expected("\"*\" or an origin as browsers send it, such as https://app.example.com (no path, lower case)",
                    node);
  server.cors_origins.push_back(text);
  return {};
}

const std::vector<Key<Server>>& server_keys() {
  static const std::vector<Key<Server>> keys = {
      text("host", &Server::host, "an address", "Address to listen on."),
      integer("port", &Server::port, 0, 65535, "TCP port; 0 takes any free one."),
      integer("threads", &Server::threads, 1, 64, "Threads that serve HTTP connections."),
      integer("max_connections", &Server::max_connections, 1, 1'000'000,
              "Open connections. For one more the one that has been idle longest is closed; if none is idle, it is "
              "answered 503, or closed without a word when there are many of them. Lowered at the start where the "
              "limit of open files is too low."),
      size("max_body", &Server::max_body, 1024, "Largest request body; larger ones are answered 413."),
      size("max_headers", &Server::max_headers, 1024, "Largest request head; larger ones are answered 431."),
      size("max_unsent", &Server::max_unsent, 1 << 20,
           "Answers that wait for slow clients, all together; beyond it the largest is cut off. Up to 64KiB of each "
           "stream that waits for its client do not count."),
      duration("header_timeout", &Server::header_timeout, kShortest, "Time for a request's head to arrive, else 408."),
      duration("body_timeout", &Server::body_timeout, kShortest, "Time for a request's body to arrive, else 408."),
      duration("write_timeout", &Server::write_timeout, kShortest,
               "A client that takes no bytes for so long is disconnected."),
      duration("idle_timeout", &Server::idle_timeout, kShortest,
               "A kept-alive connection without a request is closed after this."),
      duration("request_timeout", &Server::request_timeout, milliseconds(0),
               "Longest time for one request, queueing included, else 408; 0 sets no limit."),
      duration(
          "stall_limit", &Server::stall_limit, milliseconds(1000),
          "An engine's step that runs for longer hangs: `/health/live` answers 503, and systemd's watchdog is told "
          "nothing more, so that the process is restarted."),
      duration("drain_delay", &Server::drain_delay, milliseconds(0),
               "After SIGTERM: still accept requests for so long, not ready, so that load balancers can notice."),
      duration("drain_timeout", &Server::drain_timeout, milliseconds(0),
               "After drain_delay: time for running requests to finish; those that run on end with an error."),
      choice("operators", {"local", "gateway"}, &Server::operators,
             "Who may load and unload models (`/admin`, `/api/management`, `/api/inference/load`): requests from this "
             "machine, or also those with the header `x-user-admin: true` that come from one of `trusted_proxies`, "
             "which gateway needs."),
      list<Server>("trusted_proxies", 1000, "addresses and ranges",
                   "Proxies and gateways whose word counts (see security.md): `x-forwarded-for` and `forwarded` on the "
                   "client's address, for the log and for who is on this machine; `x-user-id` and `x-user-admin`. "
                   "From all others these headers change nothing.",
                   read_proxy,
                   [](const Server& s) {
                     std::vector<std::string> out;
                     for (const IpRange& each : s.trusted_proxies) out.push_back(each.text());
                     return out;
                   }),
      {"admin_port",
       "an integer from 0 to 65535",
       "A port of their own for `/admin`, management and `/metrics`, which then answer there alone, with the same TLS "
       "and API keys; health answers on both. 0 takes any free one.",
       [](Server& s, const YAML::Node& node) { return integer("", &Server::admin_port, 0, 65535, "").read(s, node); },
       [](const Server& s) { return s.admin_port ? std::to_string(*s.admin_port) : std::string("none"); },
       {},
       set_only(&Server::admin_port, [](int port) { return std::to_string(port); })},
      text("admin_host", &Server::admin_host, "an address",
           "Address to listen on with admin_port; another than this machine's calls for API keys, since without them "
           "operators are on this machine."),
      list<Server>("cors_origins", 1000, "origins",
                   "Web pages of these origins may call the models from a browser (CORS); \"*\" lets every page. "
                   "Operators' routes and `/metrics` are never among it.",
                   read_origin, [](const Server& s) { return s.cors_origins; }),
      file("api_keys_file", &Server::api_keys_file,
           "Who may send requests: a file of API keys (see below and api-keys.md), relative to this one. Read again "
           "when it changes. Without it everybody may, and operators are those on this machine."),
      file("tls_cert_file", &Server::tls_cert_file,
           "Speak TLS (https): a PEM file with the server's certificate and, after it, those between it and a root, "
           "relative to this one. Read again when it changes, for new connections (see security.md)."),
      file("tls_key_file", &Server::tls_key_file, "The certificate's private key, in PEM, without a passphrase."),
      file("tls_client_ca_file", &Server::tls_client_ca_file,
           "Clients show a certificate that one of those in this PEM file has signed."),
      choice("tls_client_auth", {"required", "optional"}, &Server::tls_client_auth,
             "With tls_client_ca_file: whether clients without a certificate are let in; those with a wrong one never "
             "are."),
      choice("tls_min_version", {"1.2", "1.3"}, &Server::tls_min_version, "Oldest version of TLS that is spoken."),
      choice("unknown_fields", {"reject", "warn"}, &Server::unknown_fields,
             "What to do with request fields that no API defines: refuse with 400, or log and ignore."),
  };
  return keys;
}

const std::vector<Key<Log>>& log_keys() {
  static const std::vector<Key<Log>> keys = {
      choice<Log>(
          "level", {"debug", "info", "warn", "error", "off"},
          [](Log& l, std::size_t i) { l.level = static_cast<log::Level>(i); },
          [](const Log& l) { return static_cast<std::size_t>(l.level); }, "Least level that is written (to stderr)."),
      choice<Log>(
          "format", {"text", "json"}, [](Log& l, std::size_t i) { l.format = static_cast<log::Format>(i); },
          [](const Log& l) { return static_cast<std::size_t>(l.format); },
          "Lines for people, or one JSON object a line."),
      boolean(
          "content", &Log::content,
          "Also log what is asked and answered, up to 32KiB each, at level info: for tracking down faults; it holds "
          "whatever people write."),
  };
  return keys;
}

const std::vector<Key<Memory>>& memory_keys() {
  static const std::vector<Key<Memory>> keys = {
      {"host", "a share or a size",
       "Memory for all models together (weights, KV cache, workspace): a share of the smaller of RAM and the cgroup's "
       "limit, or a size.",
       [](Memory& m, const YAML::Node& node) { return read_memory_limit(m.host, node); },
       [](const Memory& m) { return m.host.bytes != 0 ? bytes_text(m.host.bytes) : percent_text(m.host.share); }},
  };
  return keys;
}

const std::vector<Key<Compute>>& compute_keys() {
  static const std::vector<Key<Compute>> keys = {
      {"threads", "auto, or an integer from 1 to 1024",
       "Compute threads shared by all models; auto is one per usable CPU.",
       [](Compute& c, const YAML::Node& node) -> Fault {
         if (node.IsScalar() && node.Scalar() == "auto") {
           c.threads = 0;
           return {};
         }
         Fault fault = integer("", &Compute::threads, 1, 1024, "").read(c, node);
         return fault ? expected("auto, or an integer from 1 to 1024", node) : fault;
       },
       [](const Compute& c) { return c.threads == 0 ? std::string("auto") : std::to_string(c.threads); }},
      choice("kernels", {"auto", "scalar", "avx2"}, &Compute::kernels,
             "Instruction set of the compute kernels; auto takes the best that the CPU has."),
  };
  return keys;
}

const std::vector<Key<Sources>>& sources_keys() {
  static const std::vector<Key<Sources>> keys = {
      {"cache",
       "a folder",
       "Where s3:// models are kept (a relative path in models.yaml: from its folder); hf:// models are in the cache "
       "that they share with Python (HF_HOME, HF_HUB_CACHE).",
       text("", &Sources::cache, "a folder", "").read,
       [](const Sources& s) { return s.cache.empty() ? std::string("~/.cache/xgen-model") : s.cache; },
       {},
       text("", &Sources::cache, "a folder", "").yaml},
      integer("connections", &Sources::connections, 1, 64, "Parts of one file that are downloaded at the same time."),
      duration("timeout", &Sources::timeout, kShortest, "A connection that brings nothing for so long is tried again."),
      integer("retries", &Sources::retries, 0, 100,
              "Failures in a row, with less than 64KiB of progress each, before a download is given up."),
  };
  return keys;
}

const std::vector<Key<Tracing>>& tracing_keys() {
  static const std::vector<Key<Tracing>> keys = {
      {"endpoint",
       "a URL",
       "An OpenTelemetry collector, which takes OTLP over HTTP: `http://otel-collector:4318`; `/v1/traces` is added "
       "where "
       "the URL has no path. Without it no spans are sent.",
       text("", &Tracing::endpoint, "a URL such as http://otel-collector:4318", "").read,
       [](const Tracing& t) { return t.endpoint.empty() ? std::string("none") : t.endpoint; },
       {},
       text("", &Tracing::endpoint, "", "").yaml},
      {"sample", "a number from 0 to 1",
       "Share of the requests for inference that are traced, of those whose caller has not decided it (traceparent).",
       [](Tracing& t, const YAML::Node& node) -> Fault {
         constexpr std::string_view kWhat = "a number from 0 to 1";
         if (!node.IsScalar()) return expected(std::string(kWhat), node);
         const std::string& value = node.Scalar();
         double share = 0;
         const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), share);
         if (error != std::errc{} || end != value.data() + value.size() || !(share >= 0 && share <= 1))
           return expected(std::string(kWhat), node);
         t.sample = share;
         return {};
       },
       [](const Tracing& t) {
         char text[32];
         return std::string(text, std::to_chars(text, text + sizeof(text), t.sample).ptr);
       }},
      file("ca_file", &Tracing::ca_file,
           "Certificates (PEM) that the collector's is checked against, relative to this file; by default the "
           "system's."),
  };
  return keys;
}

const std::vector<Key<ModelSettings>>& settings_keys() {
  using S = ModelSettings;
  static const std::vector<Key<S>> keys = {
      integer("max_model_len", &S::max_model_len, 1, 100'000'000,
              "Most tokens of prompt and answer together; by default what the model and the memory allow."),
      integer("max_num_seqs", &S::max_num_seqs, 1, 65536, "Sequences that are computed at the same time."),
      integer("max_num_batched_tokens", &S::max_num_batched_tokens, 1, 65536,
              "Tokens of one engine step; long prompts are computed in chunks of this size. Raised to max_num_seqs "
              "where it "
              "is less, so that every sequence can move."),
      integer("max_waiting", &S::max_waiting, 1, 1'000'000, "Requests that may wait; further ones are answered 429."),
      size("kv_cache", &S::kv_cache, 1 << 16,
           "Memory for keys and values; by default planned within the memory budget."),
      choice("kv_cache_dtype", {"auto", "f32", "f16", "bf16"}, &S::kv_cache_dtype, "Number format of keys and values."),
      boolean("prefix_caching", &S::prefix_caching,
              "Keep the KV blocks of finished prompts and reuse them for equal prefixes."),
      choice("engine", {"native", "openai", "tgi", "triton"}, &S::engine,
             "What computes the model: this process, or another server (see below): one that speaks OpenAI's /v1, "
             "text-generation-inference, or Triton with TensorRT-LLM."),
      choice<S>("device", {"auto", "cpu"}, nullptr, nullptr, "Where it is computed."),
      choice<S>("quantization", {"none"}, nullptr, nullptr,
                "Conversion of the weights while loading; GGUF files keep their own format."),
      choice<S>(
          "load", {"startup", "on_demand"}, [](S& s, std::size_t i) { s.on_demand = i == 1; },
          [](const S& s) { return std::size_t{s.on_demand}; },
          "When it is loaded: before the server is ready, or by the first request for it, which waits."),
      duration("idle_unload", &S::idle_unload, milliseconds(0),
               "It is unloaded when no request has used it for so long, and loaded again by the next; 0 keeps it."),
      boolean("pin", &S::pin, "Never unload it to make room for another model."),
      integer(
          "weight", &S::weight, 1, 1000,
          "Its share of the compute threads while other models compute as well: one of weight 3 gets three times as "
          "much time as one of weight 1."),
  };
  return keys;
}

const std::vector<Key<Model>>& model_keys() {
  static const std::vector<Key<Model>> keys = {
      {"name",
       "a name",
       "What clients put into `model`.",
       [](Model& model, const YAML::Node& node) { return read_name(model.name, node); },
       [](const Model&) { return std::string("required"); },
       {},
       [](const Model& model) { return in_quotes(model.name); }},
      {"aliases", "a list of names", "Further names for the same model.",
       [](Model&, const YAML::Node& node) -> Fault {
         if (!node.IsSequence() || node.size() > 64) return expected("a list of at most 64 names", node);
         return {};
       },
       [](const Model&) { return std::string("none"); },
       [](Model& model, const YAML::Node&, const YAML::Node& name) { return append_name(model.aliases, name); },
       [](const Model& model) { return in_brackets(model.aliases); }},
      {"fallbacks", "a list of names",
       "Models of this list that a request goes to, one after the other, when this one fails it before the first token "
       "with 503, 429 or 500; see several-models.md.",
       [](Model&, const YAML::Node& node) -> Fault {
         const std::string what = "a list of at most " + std::to_string(kMaxFallbacks) + " names of models";
         if (!node.IsSequence() || node.size() > kMaxFallbacks) return expected(what, node);
         return {};
       },
       [](const Model&) { return std::string("none"); },
       [](Model& model, const YAML::Node&, const YAML::Node& name) { return append_name(model.fallbacks, name); },
       [](const Model& model) { return in_brackets(model.fallbacks); }},
      text("source", &Model::source, "a path or an address",
           "A folder with config.json, safetensors and tokenizer files, a .gguf file (the first part of a split one), "
           "`hf://ORG/REPO[@REVISION][/FILE]`, `s3://BUCKET/PREFIX` (see model-sources.md), or `builtin:xgen-demo`."),
  };
  return keys;
}

// These the client makes: with others, or twice, the request would be another.
constexpr std::string_view kHttpHeaders[] = {
    "connection", "content-encoding", "content-length",    "content-type", "expect",  "host",
    "keep-alive", "proxy-connection", "transfer-encoding", "te",           "trailer", "upgrade"};

Fault read_header(Remote& remote, const YAML::Node& key, const YAML::Node& value) {
  if (!key.IsScalar()) return expected("a header's name", key);
  const std::string& name = key.Scalar();
  const bool token = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (!token) return "'" + name + "' is no header name";
  const std::string lower = lower_case(name);
  if (std::find(std::begin(kHttpHeaders), std::end(kHttpHeaders), lower) != std::end(kHttpHeaders))
    return "'" + name + "' is HTTP's own and cannot be set";
  if (!value.IsScalar() || !printable(value.Scalar())) return "'" + name + "': " + *expected("a text", value);
  if (std::any_of(remote.headers.begin(), remote.headers.end(),
                  [&](const auto& each) { return lower_case(each.first) == lower; }))
    return "'" + name + "' is given twice";
  remote.headers.emplace_back(name, value.Scalar());
  return {};
}

constexpr std::size_t kMaxUrls = 256;

// Keys that models of one engine alone have.
constexpr std::pair<std::string_view, std::string_view> kOfOneEngine[] = {{"dialect", "openai"},
                                                                          {"tokenizer", "triton"}};

// Keys of a model that another engine serves.
const std::vector<Key<Remote>>& remote_keys() {
  static const std::vector<Key<Remote>> keys = [] {
    std::vector<Key<Remote>> made = {
        {"urls", "a list of URLs",
         "Where the engine answers: `http://vllm-0:8000/v1`, with its /v1 if the engine is openai; `http://tgi:8080`. "
         "Several are equal replicas of the model, among which requests are spread.",
         [](Remote&, const YAML::Node& node) -> Fault {
           const std::string what =
               "a list of 1 to " + std::to_string(kMaxUrls) + " URLs such as http://vllm-0:8000/v1";
           if (!node.IsSequence() || node.size() == 0 || node.size() > kMaxUrls) return expected(what, node);
           return {};
         },
         [](const Remote&) { return std::string("required"); },
         [](Remote& remote, const YAML::Node&, const YAML::Node& each) -> Fault {
           const bool url = each.IsScalar() && printable(each.Scalar()) && each.Scalar().size() <= 4096 &&
                            (each.Scalar().starts_with("http://") || each.Scalar().starts_with("https://"));
           if (!url) return expected("a URL such as http://vllm-0:8000/v1", each);
           const auto without_slash = [](std::string text) {
             while (text.ends_with('/')) text.pop_back();
             return text;
           };
           const std::string same = without_slash(each.Scalar());
           if (std::any_of(remote.urls.begin(), remote.urls.end(),
                           [&](const std::string& other) { return without_slash(other) == same; }))
             return "the URL " + each.Scalar() + " is listed twice";
           remote.urls.push_back(each.Scalar());
           return {};
         },
         [](const Remote& remote) { return in_brackets(remote.urls); }},
        boolean("replica_per_address", &Remote::replica_per_address,
                "Every address that a URL's host has is a replica of its own (a headless Service of Kubernetes); the "
                "names are looked up again every `health_interval`. Otherwise a URL is one replica."),
        {"model",
         "a name",
         "What the engine calls the model, where that is another name (tgi: its LoRA adapter, if any; "
         "triton: often ensemble or tensorrt_llm_bls).",
         [](Remote& remote, const YAML::Node& node) { return read_name(remote.model, node); },
         [](const Remote&) { return std::string("the model's name"); },
         {},
         [](const Remote& remote) { return remote.model.empty() ? std::string() : in_quotes(remote.model); }},
        choice("dialect", {"auto", "openai", "vllm", "sglang", "trtllm", "llamacpp", "xgen"}, &Remote::dialect,
               "Which engine speaks OpenAI's /v1, so that what it does not know is refused by name; auto asks its "
               "/v1/models. Of engine openai alone."),
        file("tokenizer", &Remote::tokenizer,
             "The model's tokenizer here: a folder, tokenizer.json or a .gguf file, relative to this file. Its chat "
             "template makes the text that the engine takes instead of messages. Required for engine triton, and only "
             "there."),
        file(
            "api_key_file", &Remote::api_key_file,
            "A file with the key that is sent to the engine (as `Authorization: Bearer`). Read again when it changes."),
        {"headers", "a mapping", "Further headers of every request to the engine.",
         [](Remote&, const YAML::Node& node) -> Fault {
           if (!node.IsMap() || node.size() > 64)
             return expected("a mapping of at most 64 header names to values", node);
           return {};
         },
         [](const Remote&) { return std::string("none"); }, read_header,
         [](const Remote& remote) {
           std::string out;  // a value may be a secret
           for (const auto& each : remote.headers)
             out += (out.empty() ? "" : ", ") + in_quotes(each.first) + ": \"hidden\"";
           return "{" + out + "}";
         }},
        file("ca_file", &Remote::ca_file,
             "Certificates (PEM) that are trusted instead of the system's, for https. Read again when it changes."),
        duration("connect_timeout", &Remote::connect_timeout, kShortest,
                 "Time to find and reach the engine, else 503. TLS included."),
        duration("first_byte_timeout", &Remote::first_byte_timeout, kShortest,
                 "Time for the engine to begin its answer (it may queue, and reads the prompt), else 503."),
        duration("idle_timeout", &Remote::idle_timeout, kShortest,
                 "Longest pause inside the engine's answer before it counts as broken."),
        duration("health_interval", &Remote::health_interval, milliseconds(0),
                 "How often the engine is asked whether it is well; 0 never asks."),
        choice("balance", {"prefix", "least_loaded", "round_robin"}, &Remote::balance,
               "Which of several replicas takes a request: the one with the least work before it, where what it has of "
               "the prompt in its prefix cache counts as done; the one with the least work; or each in turn."),
        integer("max_attempts", &Remote::max_attempts, 1, 64,
                "Replicas that one request may be sent to: the next, if one fails before the first token."),
        integer("max_requests", &Remote::max_requests, 1, 1'000'000,
                "Requests that run there at the same time; further ones are answered 429."),
    };
    return made;
  }();
  return keys;
}

const std::vector<Key<ApiKey>>& api_key_keys() {
  constexpr std::int64_t kMost = 1'000'000'000;
  static const std::vector<std::string_view> scopes = {"inference", "metrics", "admin"};
  static const std::vector<Key<ApiKey>> keys = {
      {"name", "a name", "Whose key it is: in the log, and in the answers to those who send too much.",
       [](ApiKey& key, const YAML::Node& node) { return read_name(key.name, node); },
       [](const ApiKey&) { return std::string("required"); }},
      {"sha256", "64 hexadecimal digits", "SHA-256 of the key, as sha256sum prints it (see api-keys.md).",
       [](ApiKey& key, const YAML::Node& node) -> Fault {
         // What stands here may be a key by mistake: it is not repeated.
         const bool digest = node.IsScalar() && node.Scalar().size() == 2 * key.sha256.size() &&
                             node.Scalar().find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
         if (!digest) return "expected the 64 hexadecimal digits that sha256sum prints of the key";
         for (std::size_t i = 0; i < key.sha256.size(); ++i)
           std::from_chars(node.Scalar().data() + 2 * i, node.Scalar().data() + 2 * i + 2, key.sha256[i], 16);
         return {};
       },
       [](const ApiKey&) { return std::string("required"); }},
      {"scopes", "a list",
       "What it is good for: inference (the models), metrics (`/metrics`), admin (operators' routes).",
       [](ApiKey& key, const YAML::Node& node) -> Fault {
         key.scopes.clear();
         if (!node.IsSequence() || node.size() == 0) return expected("a list of inference, metrics, admin", node);
         return {};
       },
       [](const ApiKey&) { return std::string("[inference]"); },
       [](ApiKey& key, const YAML::Node&, const YAML::Node& scope) -> Fault {
         if (!scope.IsScalar() || std::find(scopes.begin(), scopes.end(), scope.Scalar()) == scopes.end())
           return expected("inference, metrics or admin", scope);
         key.scopes.push_back(scope.Scalar());
         return {};
       }},
      integer("requests_per_minute", &ApiKey::requests_per_minute, 0, kMost,
              "Most requests a minute, else 429; 0 sets no limit."),
      integer("tokens_per_minute", &ApiKey::tokens_per_minute, 0, kMost,
              "Most tokens a minute, of prompts and answers, else 429; 0 sets no limit."),
  };
  return keys;
}

// Keys of the design that this version does not offer: refused by name with the reason, not as a spelling mistake.
const std::map<std::string_view, std::string_view>& unsupported_keys() {
  static const std::map<std::string_view, std::string_view> keys = {
      {"memory.gpu", "this version has no GPU support"},
  };
  return keys;
}

// Calls use(keys, section) for the section of that name; false if there is none.
template <class Use>
bool with_section(Config& config, std::string_view name, Use use) {
  if (name == "server")
    use(server_keys(), config.server);
  else if (name == "log")
    use(log_keys(), config.log);
  else if (name == "memory")
    use(memory_keys(), config.memory);
  else if (name == "compute")
    use(compute_keys(), config.compute);
  else if (name == "sources")
    use(sources_keys(), config.sources);
  else if (name == "tracing")
    use(tracing_keys(), config.tracing);
  else if (name == "defaults")
    use(settings_keys(), config.defaults);
  else
    return false;
  return true;
}

// Calls use(key, section) for the key of a path such as "server.port"; false if there is none.
template <class Use>
bool with_key(Config& config, std::string_view path, Use use) {
  const std::size_t dot = path.find('.');
  bool found = false;
  with_section(config, path.substr(0, dot), [&](const auto& keys, auto& section) {
    for (const auto& key : keys) {
      if (dot == std::string_view::npos || key.name != path.substr(dot + 1)) continue;
      use(key, section);
      found = true;
    }
  });
  return found;
}

class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  Result<Config> read(std::string_view yaml) {
    config_.file = file_;
    if (Status status = parse(yaml, [this](const YAML::Node& root) { read_root(root); }); !status)
      return std::move(status).error();
    return std::move(config_);
  }

  // Of the section `server` alone where and how it is spoken to; nothing else need be right.
  Result<Server> read_address(std::string_view yaml) {
    Status status = parse(yaml, [this](const YAML::Node& root) {
      if (!root.IsMap()) return;
      const YAML::Node section = root["server"];
      if (!section || !section.IsMap()) return;
      for (const char* name :
           {"host", "port", "tls_cert_file", "tls_key_file", "tls_client_ca_file", "tls_client_auth"})
        if (const YAML::Node value = section[name]) read_key(server_keys(), config_.server, "server", name, value);
      for (std::string* file :
           {&config_.server.tls_cert_file, &config_.server.tls_key_file, &config_.server.tls_client_ca_file})
        make_absolute(*file);
    });
    if (!status) return std::move(status).error();
    return std::move(config_.server);
  }

  Result<std::vector<ApiKey>> read_keys(std::string_view yaml) {
    std::vector<ApiKey> keys;
    if (Status status = parse(yaml, [&](const YAML::Node& root) { read_api_keys(root, keys); }); !status)
      return std::move(status).error();
    return keys;
  }

 private:
  // Calls use(root) and reports the faults that it has found.
  template <class Use>
  Status parse(std::string_view yaml, Use use) {
    if (yaml.size() > kMaxFileBytes) {
      return make_error(ErrorCode::invalid_argument, file_ + ": larger than " + bytes_text(kMaxFileBytes));
    }
    if (!is_valid_utf8(yaml)) return make_error(ErrorCode::invalid_argument, file_ + ": not valid UTF-8");
    YAML::Node root;
    try {
      if (yaml.find('\0') != std::string_view::npos) {
        return make_error(ErrorCode::invalid_argument, file_ + ": holds a NUL byte; it is no text file");
      }
      const std::string text(yaml);
      if (has_more_than_a_document(text)) {
        return make_error(ErrorCode::invalid_argument,
                          file_ +
                              ": holds more than one document, or something that belongs to none; expected one "
                              "(nothing after a line ---)");
      }
      root = YAML::Load(text);
      use(root);
    } catch (const YAML::Exception& error) {
      syntax_fault(yaml, error);
    }
    if (faults_.empty()) return {};
    std::string all;
    for (std::size_t i = 0; i < faults_.size() && i < kMaxFaults; ++i) all += (i == 0 ? "" : "\n") + faults_[i];
    if (faults_.size() > kMaxFaults) all += "\n… and " + std::to_string(faults_.size() - kMaxFaults) + " more";
    return make_error(ErrorCode::invalid_argument, all);
  }

  // yaml-cpp stops before what cannot begin a document, such as a comma: LoadAll() would read on for ever there, and
  // Load() pass it over.
  static bool has_more_than_a_document(const std::string& text) {
    struct Ignore final : YAML::EventHandler {
      void OnDocumentStart(const YAML::Mark&) override {}
      void OnDocumentEnd() override {}
      void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
      void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
      void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
      void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
      void OnSequenceEnd() override {}
      void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
      void OnMapEnd() override {}
    } ignore;
    std::istringstream in(text);
    YAML::Parser parser(in);
    parser.HandleNextDocument(ignore);
    return static_cast<bool>(parser);
  }

  // The parser's own words, where they would not help, are put as what to do.
  void syntax_fault(std::string_view yaml, const YAML::Exception& error) {
    YAML::Mark mark = error.mark;
    if (const std::optional<int> tab = indenting_tab(yaml, mark)) {
      mark.column = *tab;
      return fault(mark, "", "a tab: YAML forbids tabs in indentation, use spaces");
    }
    const std::pair<std::string_view, std::string_view> words[] = {
        {YAML::ErrorMsg::MAP_VALUE, "a ':' where no key can be: check the indentation, or put the value into quotes"},
        {YAML::ErrorMsg::END_OF_MAP, "indented unlike the keys above"},
        {YAML::ErrorMsg::END_OF_SEQ, "indented unlike the list above"},
        {YAML::ErrorMsg::END_OF_MAP_FLOW, "a '{' or a quote before this is not closed"},
        {YAML::ErrorMsg::END_OF_SEQ_FLOW, "a '[' or a quote before this is not closed"},
        {YAML::ErrorMsg::BAD_FILE, "nested too deeply"},  // of text, nothing else is a bad file
    };
    for (const auto& [theirs, ours] : words)
      if (error.msg == theirs) return fault(mark, "", std::string(ours));
    fault(mark, "", error.msg);
  }

  // The column of a tab among the blanks and dashes that begin the marked line.
  static std::optional<int> indenting_tab(std::string_view yaml, const YAML::Mark& mark) {
    if (mark.is_null()) return {};
    std::size_t begin = 0;
    for (int line = 0; line < mark.line; ++line) {
      begin = yaml.find('\n', begin);
      if (begin == std::string_view::npos) return {};
      ++begin;
    }
    const std::string_view line = yaml.substr(begin);
    const std::size_t tab = line.substr(0, line.find_first_not_of(" \t-")).find('\t');
    if (tab == std::string_view::npos) return {};
    return static_cast<int>(tab);
  }

  void fault(const YAML::Mark& mark, const std::string& key, const std::string& what) {
    std::string line = file_;
    if (!mark.is_null()) line += ":" + std::to_string(mark.line + 1) + ":" + std::to_string(mark.column + 1);
    line += ": ";
    if (!key.empty()) line += key + ": ";
    faults_.push_back(line + what);
  }

  // Calls visit(key, value node) for each entry of a mapping; repeated keys and non-text keys are faults.
  template <class Visit>
  void each_entry(const YAML::Node& map, const std::string& path, Visit visit) {
    if (!map.IsMap()) {
      if (!map.IsNull()) fault(map.Mark(), path, *expected("a mapping", map));
      return;
    }
    std::vector<std::string> seen;
    for (const auto& entry : map) {
      if (!entry.first.IsScalar()) {
        fault(entry.first.Mark(), path, "expected a key");
        continue;
      }
      const std::string& key = entry.first.Scalar();
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
        fault(entry.first.Mark(), holds_secrets_ ? path : join(path, key), "given twice");
        continue;
      }
      seen.push_back(key);
      visit(key, entry.first, entry.second);
    }
  }

  static std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }

  // The path with list indexes removed: "models[3].pin" -> "models[].pin".
  static std::string generic(const std::string& path) {
    std::string out;
    bool inside = false;
    for (const char c : path) {
      if (c == ']') inside = false;
      if (!inside) out += c;
      if (c == '[') inside = true;
    }
    return out;
  }

  template <class S>
  bool read_key(const std::vector<Key<S>>& keys, S& section, const std::string& path, const std::string& name,
                const YAML::Node& node) {
    for (const Key<S>& key : keys) {
      if (key.name != name) continue;
      if (Fault what = key.read(section, node))
        fault(node.Mark(), join(path, name), *what);
      else if (key.read_entry)
        read_entries(key, section, join(path, name), node);
      return true;
    }
    return false;
  }

  template <class S>
  void read_entries(const Key<S>& key, S& section, const std::string& path, const YAML::Node& node) {
    std::size_t i = 0;
    for (const auto& entry : node) {
      const std::string place = node.IsMap() ? path : path + "[" + std::to_string(i++) + "]";
      const YAML::Node& at = node.IsMap() ? entry.first : entry;
      if (Fault what = key.read_entry(section, entry.first, node.IsMap() ? entry.second : entry))
        fault(at.Mark(), place, *what);
    }
  }

  template <class... S>
  void unknown(const YAML::Node& at, const std::string& path, const std::string& name,
               const std::vector<Key<S>>&... tables) {
    const std::string full = join(path, name);
    std::string wanted = generic(full);
    if (wanted.starts_with("defaults.")) wanted = "models[]" + wanted.substr(8);
    if (const auto it = unsupported_keys().find(wanted); it != unsupported_keys().end()) {
      fault(at.Mark(), full, std::string(it->second));
      return;
    }
    std::string known;
    const auto list = [&](const auto& table) {
      for (const auto& key : table) known.append(known.empty() ? "" : ", ").append(key.name);
    };
    (list(tables), ...);
    fault(at.Mark(), holds_secrets_ ? path : full, "unknown key; expected one of: " + known);
  }

  template <class S>
  void read_section(const std::vector<Key<S>>& keys, S& section, const std::string& path, const YAML::Node& map) {
    each_entry(map, path, [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (!read_key(keys, section, path, name, value)) unknown(at, path, name, keys);
    });
  }

  // What stands where something else should may be a key: it is not repeated. An empty list lets nobody in.
  void read_api_keys(const YAML::Node& root, std::vector<ApiKey>& keys) {
    if (!root.IsMap()) return fault(root.Mark(), "", "expected a mapping with keys, a list of {name: …, sha256: …}");
    holds_secrets_ = true;
    YAML::Node list;
    each_entry(root, "", [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (name == "keys")
        list.reset(value);
      else
        fault(at.Mark(), "", "unknown key; expected: keys");
    });
    if (!list.IsSequence() || list.size() > kMaxApiKeys)
      return fault(list.Mark(), "keys",
                   "expected a list of at most " + std::to_string(kMaxApiKeys) + " {name: …, sha256: …}");
    std::map<std::string, std::string> names;
    std::map<std::array<std::uint8_t, 32>, std::string> digests;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const YAML::Node& node = list[i];
      const std::string path = "keys[" + std::to_string(i) + "]";
      if (!node.IsMap()) {
        fault(node.Mark(), path, "expected a mapping with name and sha256");
        continue;
      }
      const std::size_t before = faults_.size();
      ApiKey key;
      read_section(api_key_keys(), key, path, node);
      for (const char* required : {"name", "sha256"})
        if (!node[required]) fault(node.Mark(), path + "." + required, "missing");
      if (faults_.size() > before) continue;
      const std::string place = file_ + ":" + std::to_string(node.Mark().line + 1);
      if (const auto [old, fresh] = names.emplace(key.name, place); !fresh)
        fault(node.Mark(), path + ".name", "'" + key.name + "' is already used at " + old->second);
      if (const auto [old, fresh] = digests.emplace(key.sha256, place); !fresh)
        fault(node.Mark(), path + ".sha256", "the same key as at " + old->second);
      keys.push_back(std::move(key));
    }
  }

  void read_root(const YAML::Node& root) {
    YAML::Node models;
    bool has_models = false;
    each_entry(root, "", [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (name == "models") {
        models.reset(value);
        has_models = true;
      } else if (!with_section(config_, name,
                               [&](const auto& keys, auto& section) { read_section(keys, section, name, value); })) {
        fault(at.Mark(), name,
              "unknown key; expected one of: server, log, memory, compute, sources, tracing, defaults, models");
      }
    });
    // "~" and "$NAME" are the user's, and not resolved here.
    std::string& cache = config_.sources.cache;
    if (!cache.empty() && cache.find_first_of("/~$") != 0) cache = (fs::path(file_).parent_path() / cache).string();
    for (std::string* file :
         {&config_.server.api_keys_file, &config_.server.tls_cert_file, &config_.server.tls_key_file,
          &config_.server.tls_client_ca_file, &config_.tracing.ca_file})
      make_absolute(*file);
    const Server& server = config_.server;
    if (server.operators == "gateway" && server.trusted_proxies.empty())
      fault(root["server"]["operators"].Mark(), "server.operators",
            "gateway needs server.trusted_proxies, the addresses of the gateway: x-user-admin counts only from there");
    if (server.admin_port && *server.admin_port != 0 && *server.admin_port == server.port)
      fault(root["server"]["admin_port"].Mark(), "server.admin_port", "the same as server.port");
    if (!has_models) {
      config_.models = demo_config().models;
      config_.models.front().settings = config_.defaults;
      config_.models.front().where = file_;
      config_.lists_models = false;
      return;
    }
    if (!models.IsSequence() || models.size() == 0) {
      fault(models.Mark(), "models",
            *expected("a list of at least one model, each {name: …, source: …}", models) +
                "; without the key the built-in demo model is served");
      return;
    }
    if (models.size() > kMaxModels) {
      fault(models.Mark(), "models", "at most " + std::to_string(kMaxModels) + " models");
      return;
    }
    for (std::size_t i = 0; i < models.size(); ++i) read_model(models[i], "models[" + std::to_string(i) + "]");
    check_names(models);
    check_fallbacks(models);
  }

  void read_model(const YAML::Node& node, const std::string& path) {
    Model model;
    model.settings = config_.defaults;
    model.where = file_ + ":" + std::to_string(node.Mark().line + 1);
    if (!node.IsMap()) {
      fault(node.Mark(), path, *expected("a mapping with name and source", node));
      return;
    }
    std::vector<std::string> native_keys;
    std::vector<std::string> remote_only;
    each_entry(node, path, [&](const std::string& name, const YAML::Node& at, const YAML::Node& value) {
      if (read_key(model_keys(), model, path, name, value)) {
        if (name == "source") native_keys.push_back(name);
      } else if (read_key(settings_keys(), model.settings, path, name, value)) {
        if (name != "engine") native_keys.push_back(name);
      } else if (read_key(remote_keys(), model.remote, path, name, value)) {
        remote_only.push_back(name);
      } else {
        unknown(at, path, name, model_keys(), settings_keys(), remote_keys());
      }
    });
    if (!node["name"]) fault(node.Mark(), path + ".name", "missing; every model needs a name");
    for (const std::string& name : model.is_remote() ? native_keys : remote_only)
      fault(node[name].Mark(), std::string(path).append(".").append(name),
            model.is_remote() ? "belongs to models of engine native; this one is computed elsewhere"
                              : "belongs to models that another engine serves; this one's engine is native");
    if (model.is_remote()) {
      for (const auto& [name, engine] : kOfOneEngine)
        if (node[std::string(name)] && model.settings.engine != engine)
          fault(
              node[std::string(name)].Mark(), path + "." + std::string(name),
              "belongs to models of engine " + std::string(engine) + "; this one's engine is " + model.settings.engine);
      if (!model.remote.tokenizer.empty())
        if (Fault what = resolve_tokenizer(model.remote.tokenizer))
          fault(node["tokenizer"].Mark(), path + ".tokenizer", *what);
      if (model.settings.engine == "triton" && !node["tokenizer"])
        fault(node.Mark(), path + ".tokenizer",
              "missing; engine triton takes only text, so the model's tokenizer and chat template are needed here");
      if (!node["urls"]) fault(node.Mark(), path + ".urls", "missing; where does the engine answer?");
      const std::pair<const char*, std::string*> files[] = {{"api_key_file", &model.remote.api_key_file},
                                                            {"ca_file", &model.remote.ca_file}};
      for (const auto& [name, file] : files) {
        make_absolute(*file);
        std::error_code error;
        if (!file->empty() && !fs::exists(*file, error))
          fault(node[name].Mark(), path + "." + name, "'" + *file + "': " + (error ? error.message() : "no such file"));
      }
      for (const auto& [name, value] : model.remote.headers)
        if (!model.remote.api_key_file.empty() && lower_case(name) == "authorization")
          fault(node["headers"].Mark(), path + ".headers",
                "'" + name + "' is what api_key_file is for; give one of them");
    } else if (!node["source"]) {
      fault(node.Mark(), path + ".source", "missing; expected a folder, a .gguf file, hf://… or s3://…");
    } else if (!model.source.empty()) {
      if (Fault what = resolve(model.source)) fault(node["source"].Mark(), path + ".source", *what);
    }
    config_.models.push_back(std::move(model));
  }

  // Paths are relative to the file's folder.
  void make_absolute(std::string& name) const {
    if (name.empty()) return;
    fs::path path(name);
    if (path.is_relative()) path = fs::path(file_).parent_path() / path;
    std::error_code error;
    name = fs::absolute(path, error).lexically_normal().string();
  }

  // Makes a tokenizer's path absolute and checks that it is there. What lies beside a tokenizer.json belongs to it.
  Fault resolve_tokenizer(std::string& name) const {
    make_absolute(name);
    const fs::path path(name);
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (error || !fs::exists(status)) return "'" + name + "': " + (error ? error.message() : "no such file or folder");
    if (fs::is_directory(status) || path.extension() == ".gguf") return {};
    if (path.filename() != "tokenizer.json") return "'" + name + "': expected a folder, tokenizer.json or a .gguf file";
    name = path.parent_path().string();
    return {};
  }

  // Makes a source absolute and checks that it is there.
  Fault resolve(std::string& source) {
    if (source == kDemoSource) return {};
    if (is_remote_source(source)) {
      const auto remote = parse_remote_source(source);
      return remote ? Fault() : remote.error().message;
    }
    fs::path path(source);
    if (path.is_relative()) path = fs::path(file_).parent_path() / path;
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (error || !fs::exists(status)) {
      return "'" + path.lexically_normal().string() + "': " + (error ? error.message() : "no such file or folder");
    }
    if (!fs::is_directory(status) && path.extension() != ".gguf") {
      return "'" + source + "': expected a folder or a .gguf file";
    }
    source = fs::absolute(path, error).lexically_normal().string();
    return {};
  }

  void check_names(const YAML::Node& models) {
    std::map<std::string, std::string> seen;
    for (std::size_t i = 0; i < config_.models.size() && config_.models.size() == models.size(); ++i) {
      std::vector<std::string> names = config_.models[i].aliases;
      names.insert(names.begin(), config_.models[i].name);
      for (const std::string& name : names) {
        if (name.empty()) continue;
        const auto [it, fresh] = seen.emplace(name, config_.models[i].where);
        if (!fresh)
          fault(models[i].Mark(), "models[" + std::to_string(i) + "]",
                "the name '" + name + "' is already used at " + it->second);
      }
    }
  }

  // Puts the models' names where aliases were written.
  void check_fallbacks(const YAML::Node& models) {
    if (config_.models.size() != models.size()) return;  // some could not be read
    std::map<std::string, std::size_t> places;
    for (std::size_t i = 0; i < config_.models.size(); ++i) {
      places.emplace(config_.models[i].name, i);
      for (const std::string& alias : config_.models[i].aliases) places.emplace(alias, i);
    }
    std::vector<std::vector<std::size_t>> ways(config_.models.size());
    for (std::size_t i = 0; i < config_.models.size(); ++i) {
      std::vector<std::string>& fallbacks = config_.models[i].fallbacks;
      if (!fallbacks.empty() && fallbacks.size() != models[i]["fallbacks"].size()) continue;  // some could not be read
      for (std::size_t k = 0; k < fallbacks.size(); ++k) {
        const auto refuse = [&](const std::string& why) {
          fault(models[i]["fallbacks"][k].Mark(),
                "models[" + std::to_string(i) + "].fallbacks[" + std::to_string(k) + "]",
                "'" + fallbacks[k] + "' " + why);
        };
        const auto found = places.find(fallbacks[k]);
        if (found == places.end()) {
          refuse("is no model of this list");
        } else if (found->second == i) {
          refuse("is this model itself");
        } else if (std::find(ways[i].begin(), ways[i].end(), found->second) != ways[i].end()) {
          refuse("is listed twice");
        } else {
          ways[i].push_back(found->second);
          fallbacks[k] = config_.models[found->second].name;
        }
      }
    }
    for (std::size_t i = 0; i < ways.size(); ++i) {
      std::vector<bool> seen(ways.size());
      std::string text;
      if (leads_back(ways, i, i, seen, text))
        fault(models[i]["fallbacks"].Mark(), "models[" + std::to_string(i) + "].fallbacks",
              "they lead back to the model: " + config_.models[i].name + text);
    }
  }

  // Whether one comes from `at` to `start` through models that stand after `start`, so that every circle is found once;
  // `text` is the way then.
  bool leads_back(const std::vector<std::vector<std::size_t>>& ways, std::size_t at, std::size_t start,
                  std::vector<bool>& seen, std::string& text) const {
    for (const std::size_t next : ways[at]) {
      if (next < start || seen[next]) continue;
      seen[next] = true;
      if (next != start && !leads_back(ways, next, start, seen, text)) continue;
      text.insert(0, " -> " + config_.models[next].name);
      return true;
    }
    return false;
  }

  std::string file_;
  bool holds_secrets_ = false;  // names are not repeated in messages
  Config config_;
  std::vector<std::string> faults_;
};

template <class S>
void append_reference(std::string& out, std::string_view title, std::string_view path,
                      const std::vector<Key<S>>& keys) {
  const S defaults{};
  out.append("\n## ").append(title).append("\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
  for (const Key<S>& key : keys) {
    std::string type = key.type;
    for (std::size_t at = 0; (at = type.find('|', at)) != std::string::npos; at += 2) type.insert(at, 1, '\\');
    out.append("| `").append(path).append(key.name).append("` | ").append(type).append(" | ").append(
        key.show(defaults));
    out.append(" | ").append(key.help).append(" |\n");
  }
}

// Lines "KEY: VALUE" by key; one that is not set is a comment.
template <class S>
void add_lines(std::map<std::string_view, std::string>& lines, const std::vector<Key<S>>& keys, const S& section) {
  for (const Key<S>& key : keys) {
    const std::string value = key.yaml ? key.yaml(section) : key.show(section);
    lines[key.name] =
        (value.empty() ? "# " : "") + std::string(key.name) + ": " + (value.empty() ? key.show(section) : value) + "\n";
  }
}

template <class S>
void append_yaml(std::string& out, const char* name, const std::vector<Key<S>>& keys, const S& section) {
  std::map<std::string_view, std::string> lines;
  add_lines(lines, keys, section);
  out.append(name).append(":\n");
  for (const auto& [key, line] : lines) out.append("  ").append(line);
}

void append_yaml(std::string& out, const Model& model) {
  std::map<std::string_view, std::string> lines;
  if (model.is_remote()) {
    add_lines(lines, remote_keys(), model.remote);
    for (const auto& [key, engine] : kOfOneEngine)
      if (model.settings.engine != engine) lines.erase(key);
    lines["engine"] = "engine: " + model.settings.engine + "\n";
  } else {
    add_lines(lines, settings_keys(), model.settings);
  }
  add_lines(lines, model_keys(), model);
  if (model.is_remote()) lines.erase("source");
  out.append("  - ").append(lines["name"]);
  lines.erase("name");
  for (const auto& [key, line] : lines) out.append("    ").append(line);
}

template <class S>
void append_names(std::vector<std::string>& out, const std::string& path, const std::vector<Key<S>>& keys) {
  for (const Key<S>& key : keys) out.push_back(path + std::string(key.name));
}

// A file (with its other parts, where it is one of a split .gguf), or the files of a folder, with what tells that
// they have changed.
void add_files(std::string& out, const fs::path& path) {
  std::error_code error;
  std::vector<fs::path> files;
  if (fs::is_directory(path, error)) {
    for (const auto& entry : fs::directory_iterator(path, error)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
  } else {
    for (const std::string& name : all_parts(path.filename().string())) files.push_back(path.parent_path() / name);
  }
  for (const fs::path& file : files) {
    const auto size = fs::file_size(file, error);
    const auto time = fs::last_write_time(file, error).time_since_epoch().count();
    out += "\n" + file.string() + " " + std::to_string(size) + " " + std::to_string(time);
  }
}

}  // namespace

std::string fingerprint(const Model& model) {
  std::string out = model.source;
  if (model.is_remote()) {
    const Remote& remote = model.remote;
    out = remote.model + "\n" + remote.api_key_file + "\n" + remote.ca_file;
    for (const std::string& url : remote.urls) out += "\n" + url;
    for (const auto& [name, value] : remote.headers) out.append("\n").append(name).append(": ").append(value);
    for (const Key<Remote>& key : remote_keys()) out.append("\n").append(key.name).append("=").append(key.show(remote));
    if (!remote.tokenizer.empty()) add_files(out, remote.tokenizer);
    return out + "\n" + model.settings.engine;
  }
  for (const Key<ModelSettings>& key : settings_keys()) {
    if (key.name == "load" || key.name == "idle_unload" || key.name == "pin") continue;
    out.append("\n").append(key.name).append("=").append(key.show(model.settings));
  }
  if (model.source != kDemoSource && !is_remote_source(model.source)) add_files(out, model.source);
  return out;
}

std::string effective_yaml(const Config& config) {
  std::string out;
  append_yaml(out, "compute", compute_keys(), config.compute);
  append_yaml(out, "defaults", settings_keys(), config.defaults);
  append_yaml(out, "log", log_keys(), config.log);
  append_yaml(out, "memory", memory_keys(), config.memory);
  out += "models:\n";
  for (const Model& model : config.models) append_yaml(out, model);
  append_yaml(out, "server", server_keys(), config.server);
  append_yaml(out, "sources", sources_keys(), config.sources);
  append_yaml(out, "tracing", tracing_keys(), config.tracing);
  return out;
}

Config demo_config() {
  Config config;
  Model model;
  model.name = kDemoName;
  model.source = kDemoSource;
  model.where = "built in";
  config.models.push_back(std::move(model));
  return config;
}

Result<Config> single_model_config(const std::string& source, const std::optional<std::string>& name) {
  Config config;
  Model model;
  model.source = source;
  model.where = "command line";
  if (source == kDemoSource) {
    model.name = kDemoName;
  } else if (is_remote_source(source)) {
    const auto remote = parse_remote_source(source);
    if (!remote) return remote.error();
    model.name = default_model_name(*remote);
  } else {
    std::error_code error;
    const fs::path absolute = fs::absolute(source, error).lexically_normal();
    const bool folder = fs::is_directory(absolute, error);
    if (!fs::exists(absolute, error)) return make_error(ErrorCode::not_found, source + ": no such file or folder");
    if (!folder && absolute.extension() != ".gguf") {
      return make_error(ErrorCode::invalid_argument, source + ": expected a model folder or a .gguf file");
    }
    model.source = absolute.string();
    const fs::path last = absolute.has_filename() ? absolute.filename() : absolute.parent_path().filename();
    model.name = folder ? last.string() : last.stem().string();
  }
  std::replace_if(
      model.name.begin(), model.name.end(), [](unsigned char c) { return c <= 0x20 || c == 0x7f; }, '-');
  if (name) model.name = *name;
  if (!is_name(model.name))
    return make_error(ErrorCode::invalid_argument,
                      "--name: expected " + std::string(kNameShape) + ", got '" + model.name.substr(0, 100) + "'");
  config.models.push_back(std::move(model));
  return config;
}

Result<Config> load_text(std::string_view text, const std::string& file) { return Reader(file).read(text); }

namespace {

template <class T>
Result<T> read_file(const std::string& path, Result<T> (*read)(std::string_view text, const std::string& file)) {
  const auto damage = std::make_shared<FileDamage>();
  auto bytes = map_file(path, damage);
  if (!bytes) return std::move(bytes).error();
  auto read_one = read(bytes->text(), path);
  // An editor that rewrites it in place may have cut it short meanwhile.
  if (Status whole = damage->status(); !whole) return std::move(whole).error();
  return read_one;
}

}  // namespace

Result<Config> load_file(const std::string& path) { return read_file<Config>(path, load_text); }

Result<Server> load_address_text(std::string_view text, const std::string& file) {
  return Reader(file).read_address(text);
}

Result<Server> load_address(const std::string& path) { return read_file<Server>(path, load_address_text); }

Result<std::vector<ApiKey>> load_keys_text(std::string_view text, const std::string& file) {
  return Reader(file).read_keys(text);
}

Result<std::vector<ApiKey>> load_keys(const std::string& path) {
  return read_file<std::vector<ApiKey>>(path, load_keys_text);
}

Status set(Config& config, std::string_view key, const std::string& value) {
  Fault fault;
  const bool known = with_key(config, key, [&](const auto& found, auto& section) {
    const YAML::Node node(value);
    fault = found.read(section, node);
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(section)>, ModelSettings>)
      for (Model& model : config.models)
        if (!fault) fault = found.read(model.settings, node);
  });
  if (!known) fault = "unknown key";
  if (fault) return make_error(ErrorCode::invalid_argument, *fault, std::string(key));
  return {};
}

std::string describe_key(std::string_view key) {
  std::string out;
  Config defaults;
  with_key(defaults, key,
           [&](const auto& found, const auto&) { out.append(found.help).append(" (").append(found.type).append(")"); });
  return out;
}

std::vector<std::string> key_names() {
  std::vector<std::string> out;
  append_names(out, "server.", server_keys());
  append_names(out, "log.", log_keys());
  append_names(out, "memory.", memory_keys());
  append_names(out, "compute.", compute_keys());
  append_names(out, "sources.", sources_keys());
  append_names(out, "tracing.", tracing_keys());
  append_names(out, "defaults.", settings_keys());
  append_names(out, "models[].", model_keys());
  append_names(out, "models[].", settings_keys());
  append_names(out, "models[].", remote_keys());
  return out;
}

std::string reference_markdown() {
  std::string out = R"(# models.yaml

<!-- Printed by `xgen-model docs configuration`; the text and the tables are in src/config/config.cpp. -->

The file is looked for in this order: `--config FILE`, the environment variable `MODEL_CONFIG_PATH`, `models.yaml` in the working
directory. Without any, or without a `models` key in it, the built-in model `xgen-demo` is served. `xgen-model serve SOURCE` serves one
model with no file at all. The same file serves a shell, systemd, Docker and Kubernetes; no environment variable but the one above is read
for settings, except for what the Hub's and AWS's own tools read of addresses, keys and folders ([model-sources.md](model-sources.md)).
Flags of the command line (`--host`, `--port`, …) win over the file.

Unknown keys, wrong types, repeated names and missing paths are errors that name file, line, column, key and what was expected; nothing
is started then, and the exit code is 2. `xgen-model check` checks a file and prints the memory plan; `xgen-model check --print-effective`
prints the whole configuration that is in force, flags and defaults included, as a models.yaml.

Model files are mapped, not copied: replace them by renaming new ones into place, never by writing into files that are being served.
A file that is cut short while it is served, or whose storage fails, fails its model alone: running requests end with 503, and the model
can be loaded again (`POST /admin/load`) once the file is whole. What is overwritten in place is not noticed.

The log goes to stderr. What `serve` prints once it is ready (the models, the address, a command to try) goes to stdout.

Sizes are written `512MiB`, `2GiB` (powers of 1024) or `2GB` (of 1000); a number alone is bytes. Durations are written `250ms`, `30s`,
`10m`, `2h`, `1d`; a number alone is seconds.

```yaml
server: {port: 8000, drain_delay: 5s}
memory: {host: 80%}
defaults: {max_num_seqs: 64}          # settings for all models
models:
  - name: qwen3-0.6b                  # what clients put into "model"
    aliases: [default]
    source: /models/Qwen3-0.6B        # a folder, or a .gguf file; relative to this file
    kv_cache: 2GiB
  - name: llama-70b                   # computed elsewhere
    engine: openai
    urls: [http://vllm-0:8000/v1]
    model: meta-llama/Llama-3.1-70B-Instruct
  - name: llama-1b                    # downloaded when it is not there yet
    source: hf://unsloth/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q8_0.gguf
```
)";
  append_reference(out, "server", "server.", server_keys());
  append_reference(out, "log", "log.", log_keys());
  append_reference(out, "memory", "memory.", memory_keys());
  append_reference(out, "compute", "compute.", compute_keys());
  append_reference(out, "sources", "sources.", sources_keys());
  append_reference(out, "tracing", "tracing.", tracing_keys());
  append_reference(out, "models", "models[].", model_keys());
  append_reference(out, "Settings of a model (under `models[]`, or for all models under `defaults`)", "",
                   settings_keys());
  append_reference(out, "A model that another engine serves", "", remote_keys());
  out +=
      "\nOf the settings above such a model takes `engine` alone, and it has no `source`. "
      "[remote-engines.md](remote-engines.md) explains it.\n";
  append_reference(out, "The file of API keys (`keys`, a list)", "keys[].", api_key_keys());
  out += "\n## Known, but not in this version\n\n";
  for (const auto& [name, why] : unsupported_keys())
    out.append("- `").append(name).append("`: ").append(why).append(".\n");
  return out;
}

}  // namespace xgen::config
