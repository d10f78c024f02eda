// GatewayService: several equal replicas of one model as one ModelService.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gateway/balancer.h"
#include "inference/model_service.h"

namespace xgen::gateway {

struct GatewayOptions {
  std::string model;                          // for messages
  std::string none_known = "none is listed";  // why, while there is no replica; for messages
  BalancerOptions balancer;
  int max_attempts = 3;               // replicas that one request may be sent to
  milliseconds refresh_interval{20};  // what replicas say of their health and load is read again after it
};

// The service that speaks to one replica; it may be destroyed on any thread. Its health is dead while the replica does
// not answer or is not ready, and its load is what the replica says.
using ReplicaFactory = std::function<std::shared_ptr<inference::ModelService>(const std::string& name)>;

class GatewayService final : public inference::ModelService {
 public:
  GatewayService(GatewayOptions options, ReplicaFactory factory, const std::vector<std::string>& replicas);
  ~GatewayService() override;

  // Requests to replicas that are not among them any more run on. Thread-safe; without effect once closed.
  void set_replicas(const std::vector<std::string>& names);

  // A request that fails before its first token is sent to another replica, if the fault may be the replica's own.
  std::unique_ptr<inference::RequestHandle> generate_async(inference::GenerateRequest request,
                                                           std::shared_ptr<inference::EventSink> sink) override;
  void tokenize_async(inference::TokenizeRequest request,
                      std::function<void(Result<inference::Tokenized>)> done) override;
  void detokenize_async(inference::DetokenizeRequest request, std::function<void(Result<std::string>)> done) override;
  // Of the first replica: they are taken to be equal. Without any, a chat is possible, for all that is known.
  inference::Capabilities capabilities() const override;
  // Ready while any replica is in (`detail` names those that are out), else degraded.
  inference::Health health() const override;
  // Of all replicas together, those that have gone included.
  inference::ServiceStats stats() const override;
  inference::Load load() const override;
  std::vector<inference::ReplicaState> replicas() const override;
  void close() override;

 private:
  class State;
  class GenerateRoute;
  template <class T>
  using Ask = std::function<void(inference::ModelService&, std::function<void(Result<T>)>)>;
  template <class T>
  static void ask_one(std::shared_ptr<State> state, Ask<T> ask, std::function<void(Result<T>)> done,
                      std::set<std::string> tried, std::optional<Error> failure = std::nullopt);

  const std::shared_ptr<State> state_;
};

}  // namespace xgen::gateway
