#include "remote_models.h"

#include <chrono>
#include <map>
#include <utility>

#include "base/log.h"
#include "gateway/gateway_service.h"
#include "http/url.h"
#include "remote/openai_service.h"
#include "remote/tgi_service.h"

namespace xgen {
namespace {

constexpr std::chrono::milliseconds kLoadInterval{1'000};  // between looks at each replica's metrics

Result<http::Url> base_url(const config::Model& model, const std::string& text) {
  auto url = http::parse_url(text);
  if (url && url->target.find('?') == std::string::npos) return url;
  return make_error(ErrorCode::invalid_argument, model.where + ": model '" + model.name + "': urls: '" + text + "': " +
                                                     (url ? "the base of an API has no query" : url.error().message));
}

// What the keys of all remote models say.
remote::EndpointOptions endpoint_options(const config::Model& model) {
  const config::Remote& remote = model.remote;
  remote::EndpointOptions options;
  options.name = model.name;
  options.model = remote.model;
  options.api_key_file = remote.api_key_file;
  options.headers = remote.headers;
  options.ca_file = remote.ca_file;
  options.connect_timeout = remote.connect_timeout;
  options.first_byte_timeout = remote.first_byte_timeout;
  options.idle_timeout = remote.idle_timeout;
  options.health_interval = remote.health_interval;
  options.max_requests = static_cast<std::size_t>(remote.max_requests);
  return options;
}

gateway::Policy policy_of(const std::string& name) {
  if (name == "least_loaded") return gateway::Policy::least_loaded;
  return name == "round_robin" ? gateway::Policy::round_robin : gateway::Policy::prefix;
}

}  // namespace

Result<registry::ModelLoader::Need> RemoteModelLoader::need() {
  for (const std::string& each : model_.remote.urls)
    if (const auto url = base_url(model_, each); !url) return url.error();
  return Need{};
}

Result<std::shared_ptr<inference::ModelService>> RemoteModelLoader::load(std::shared_ptr<MemoryBudget::Account> account,
                                                                         const std::function<void(double)>& progress) {
  (void)account;
  (void)progress;
  const config::Remote& remote = model_.remote;
  std::map<std::string, http::Url> urls;
  for (const std::string& each : remote.urls) {
    auto url = base_url(model_, each);
    if (!url) return std::move(url).error();
    urls.emplace(each, *std::move(url));
  }
  log::info("loader", "model ready",
            {{"model", model_.name},
             {"engine", model_.settings.engine},
             {"url", remote.urls.front()},
             {"replicas", static_cast<std::int64_t>(remote.urls.size())}});
  const auto serve = [model = model_, client = client_](http::Url url, bool one_of_several) {
    remote::EndpointOptions options = endpoint_options(model);
    options.url = std::move(url);
    if (model.settings.engine == "tgi") return remote::make_tgi_service(std::move(options), client->get());
    if (one_of_several) options.load_interval = kLoadInterval;
    const auto dialect = remote::dialect_of_name(model.remote.dialect).value_or(remote::Dialect::unknown);
    return remote::make_openai_service({std::move(options), dialect}, client->get());
  };
  if (urls.size() == 1) return serve(urls.begin()->second, false);
  gateway::GatewayOptions several;
  several.model = model_.name;
  several.balancer.policy = policy_of(remote.balance);
  several.max_attempts = remote.max_attempts;
  const auto replica = [serve, urls](const std::string& name) { return serve(urls.at(name), true); };
  return std::shared_ptr<inference::ModelService>(
      std::make_shared<gateway::GatewayService>(std::move(several), replica, remote.urls));
}

std::string RemoteModelLoader::plan_text() const {
  const config::Remote& remote = model_.remote;
  const std::size_t more = remote.urls.size() - 1;
  return model_.name + " (remote: " + (remote.model.empty() ? model_.name : remote.model) + " at " +
         remote.urls.front() + (more > 0 ? " and " + std::to_string(more) + " more, " + remote.balance : "") + ", " +
         model_.settings.engine + (remote.dialect == "auto" ? std::string() : ", " + remote.dialect) +
         (remote.api_key_file.empty() ? "" : ", with a key") + ")\n  total      " + std::string(9, ' ') +
         "0 B   computed elsewhere\n";
}

}  // namespace xgen
