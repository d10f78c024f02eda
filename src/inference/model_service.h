// ModelService: one served model, whatever engine stands behind it. The seam between server and engines.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "inference/stats.h"
#include "inference/types.h"

namespace xgen::inference {

// Owning handle of a running request: destroying it cancels the request (its KV blocks are free within one engine
// step, and no further event than at most one already under way is delivered). After the terminal event it is inert.
class RequestHandle {
 public:
  virtual ~RequestHandle() = default;
};

struct Capabilities {
  bool chat = false;  // has a chat template
  bool completions = true;
  bool logprobs = true;
  bool token_ids = true;  // accepts token ids as a prompt, tokenize and detokenize work
  int max_model_len = 0;  // tokens of prompt + output
  bool tools = false;     // calls functions, and knows messages about calls
  bool response_format = false;
  bool images = false;
  bool extensions = false;  // takes (or refuses) every Extension by itself
};

// The first thing that `request` asks for and a service with these capabilities does not offer, as an error that names
// the parameter: for a service to refuse by.
std::optional<Error> not_offered(const GenerateRequest& request, const Capabilities& capabilities);
std::optional<Error> not_offered(const Prompt& prompt, const Capabilities& capabilities);

struct TokenizeRequest {
  Prompt prompt;                   // text or messages
  bool add_special_tokens = true;  // text only; a chat's template writes its own
  bool add_generation_prompt = true;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  int hops = 0;  // as GenerateRequest's
};
struct DetokenizeRequest {
  std::vector<TokenId> ids;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  int hops = 0;  // as GenerateRequest's
};
struct Tokenized {
  std::vector<TokenId> ids;
  std::vector<std::string> tokens;  // the bytes of each; empty where the engine does not tell
};

struct Health {
  enum class State { ready, degraded, dead } state = State::ready;
  double seconds_since_step = 0;  // 0 while idle; how long the current step has been running
  std::string detail;
};

// What an engine has to do, as it says itself; of a remote engine, for all its clients.
struct Load {
  double running = 0;    // requests
  double waiting = 0;    // requests
  double kv_tokens = 0;  // size of its KV cache; 0 = not known
  double own = 0;        // how many of the requests are this service's
};

// One of several equal engines behind a model, as its gateway sees it.
struct ReplicaState {
  std::string name;  // its URL
  bool healthy = true;
  bool open = false;  // its circuit: nothing is sent there for a while
  int in_flight = 0;
  std::uint64_t sent = 0;      // requests
  std::uint64_t failures = 0;  // of them
  std::uint64_t ejections = 0;
  std::uint64_t chunks = 0;          // of all prompts sent there, in units of the gateway's prefix index
  std::uint64_t matched_chunks = 0;  // of them, expected in its prefix cache
};

// Thread-safe. Every method returns at once.
class ModelService {
 public:
  virtual ~ModelService() = default;

  // Starts a request. A refusal (bad prompt, full queue…) arrives as a Failed event, possibly before this returns.
  virtual std::unique_ptr<RequestHandle> generate_async(GenerateRequest request, std::shared_ptr<EventSink> sink) = 0;

  // `done` is called exactly once, possibly before the call returns, from any thread.
  virtual void tokenize_async(TokenizeRequest request, std::function<void(Result<Tokenized>)> done) = 0;
  virtual void detokenize_async(DetokenizeRequest request, std::function<void(Result<std::string>)> done) = 0;

  virtual Capabilities capabilities() const = 0;
  virtual Health health() const = 0;
  virtual ServiceStats stats() const = 0;
  virtual Load load() const;  // by stats(), if not known better
  virtual std::vector<ReplicaState> replicas() const { return {}; }

  // `failed` is called, at most once and from any thread, when the service has ended by itself: every request has got
  // its event, and no further one will be served. It must not call back.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): whoever overrides it keeps the function
  virtual void on_failure(std::function<void(Error)> /*failed*/) {}

  // Ends every request that is under way as unavailable, and refuses new ones: what holds handles gets its events.
  virtual void close() = 0;
};

}  // namespace xgen::inference
