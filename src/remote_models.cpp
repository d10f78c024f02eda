#include "remote_models.h"

#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/file_set.h"
#include "base/log.h"
#include "engine/chat_renderer.h"
#include "engine/load_tokenizer.h"
#include "gateway/gateway_service.h"
#include "http/url.h"
#include "remote/address_watch.h"
#include "remote/openai_service.h"
#include "remote/tgi_service.h"
#include "remote/triton_service.h"

namespace xgen {
namespace {

constexpr std::chrono::milliseconds kLoadInterval{1'000};   // between looks at each replica's metrics
constexpr std::chrono::milliseconds kLookInterval{10'000};  // between looks for addresses, where health has none
constexpr std::chrono::milliseconds kFirstLook{1'000};      // that a load waits for the first addresses

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

using ReplicaAt = std::function<std::shared_ptr<inference::ModelService>(const http::Url&)>;

// A gateway whose replicas are the addresses behind these URLs, as they come and go.
std::shared_ptr<inference::ModelService> replica_per_address(gateway::GatewayOptions options,
                                                             remote::AddressOptions addresses, http::Client& client,
                                                             ReplicaAt replica_at) {
  struct Watched {
    std::shared_ptr<gateway::GatewayService> service;
    std::shared_ptr<remote::AddressWatch> addresses;
  };
  const auto watched = std::make_shared<Watched>();
  const auto urls = std::make_shared<std::map<std::string, http::Url>>();  // of the replicas; of the watch's thread
  const auto replica = [replica_at = std::move(replica_at), urls](const std::string& name) {
    return replica_at(urls->at(name));
  };
  watched->service = std::make_shared<gateway::GatewayService>(std::move(options), replica, std::vector<std::string>());
  const auto looked = std::make_shared<std::promise<void>>();
  const auto found = [urls, weak = std::weak_ptr(watched->service), looked,
                      first = true](std::vector<http::Url> all) mutable {
    urls->clear();
    std::vector<std::string> names;
    for (http::Url& each : all) {
      names.push_back(remote::replica_name(each));
      urls->emplace(names.back(), std::move(each));
    }
    if (const auto service = weak.lock()) service->set_replicas(names);
    if (std::exchange(first, false)) looked->set_value();
  };
  watched->addresses = std::make_shared<remote::AddressWatch>(std::move(addresses), client, found);
  watched->addresses->start();
  // So that the first requests find what is there. A name that is not found yet may be later.
  looked->get_future().wait_for(kFirstLook);
  return {watched, watched->service.get()};
}

}  // namespace

Result<registry::ModelLoader::Need> RemoteModelLoader::need() {
  std::optional<Error> faults;
  for (const std::string& each : model_.remote.urls) {
    const auto url = base_url(model_, each);
    if (!url) add_fault(faults, url.error());
    if (url && url->target == "/" && model_.settings.engine == "openai")
      log::warn("remote", "the URL has no path; engines that speak OpenAI's API have it at /v1",
                {{"model", model_.name}, {"url", each}});
  }
  if (faults) return *faults;
  return Need{};
}

Result<std::shared_ptr<const remote::ModelText>> RemoteModelLoader::read_text() const {
  const auto at = [this](Error error) {
    error.message = model_.where + ": model '" + model_.name + "': tokenizer: " + error.message;
    return error;
  };
  const auto files = open_files(model_.remote.tokenizer);
  if (!files) return at(files.error());
  auto tokenizer = engine::load_tokenizer(**files);
  if (Status read = (*files)->damage()->status(); !read) return at(std::move(read).error());
  if (!tokenizer) return at(std::move(tokenizer).error());
  auto render = engine::make_chat_renderer(*tokenizer, (*files)->describe());
  if (!render) return at(std::move(render).error());
  return std::make_shared<const remote::ModelText>(*std::move(tokenizer), *std::move(render));
}

Status RemoteModelLoader::check_text() const {
  if (model_.remote.tokenizer.empty()) return {};
  auto text = read_text();
  return text ? Status() : Status(std::move(text).error());
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
  std::shared_ptr<const remote::ModelText> text;
  if (!remote.tokenizer.empty()) {
    auto read = read_text();
    if (!read) return std::move(read).error();
    text = *std::move(read);
  }
  log::info("loader", "model ready",
            {{"model", model_.name},
             {"engine", model_.settings.engine},
             {"url", remote.urls.front()},
             remote.replica_per_address ? log::Field("replicas", "by address")
                                        : log::Field("replicas", static_cast<std::int64_t>(remote.urls.size()))});
  const auto serve = [model = model_, client = client_, text](http::Url url, bool one_of_several) {
    remote::EndpointOptions options = endpoint_options(model);
    options.url = std::move(url);
    if (model.settings.engine == "tgi") return remote::make_tgi_service(std::move(options), client->get());
    if (model.settings.engine == "triton") return remote::make_triton_service(std::move(options), text, client->get());
    if (one_of_several) options.load_interval = kLoadInterval;
    const auto dialect = remote::dialect_of_name(model.remote.dialect).value_or(remote::Dialect::unknown);
    return remote::make_openai_service({std::move(options), dialect}, client->get());
  };
  if (urls.size() == 1 && !remote.replica_per_address) return serve(urls.begin()->second, false);
  gateway::GatewayOptions several;
  several.model = model_.name;
  several.balancer.policy = policy_of(remote.balance);
  several.max_attempts = remote.max_attempts;
  if (remote.replica_per_address) {
    remote::AddressOptions addresses;
    addresses.model = model_.name;
    std::set<std::string> hosts;
    for (const std::string& each : remote.urls) {
      addresses.urls.push_back(urls.at(each));
      hosts.insert(urls.at(each).host);
    }
    several.none_known.clear();
    for (const std::string& host : hosts) several.none_known += (several.none_known.empty() ? "" : " or ") + host;
    several.none_known.insert(0, "no address is known of ");
    addresses.interval = remote.health_interval.count() > 0 ? remote.health_interval : kLookInterval;
    return replica_per_address(std::move(several), std::move(addresses), client_->get(),
                               [serve](const http::Url& url) { return serve(url, true); });
  }
  const auto replica = [serve, urls](const std::string& name) { return serve(urls.at(name), true); };
  return std::shared_ptr<inference::ModelService>(
      std::make_shared<gateway::GatewayService>(std::move(several), replica, remote.urls));
}

std::string RemoteModelLoader::plan_text() const {
  const config::Remote& remote = model_.remote;
  const std::size_t more = remote.urls.size() - 1;
  return model_.name + " (remote: " + (remote.model.empty() ? model_.name : remote.model) + " at " +
         remote.urls.front() + (more > 0 ? " and " + std::to_string(more) + " more" : "") +
         (remote.replica_per_address ? ", each address a replica" : "") +
         (more > 0 || remote.replica_per_address ? ", " + remote.balance : "") + ", " + model_.settings.engine +
         (remote.dialect == "auto" ? std::string() : ", " + remote.dialect) +
         (remote.api_key_file.empty() ? "" : ", with a key") + ")\n  total      " + std::string(9, ' ') +
         "0 B   computed elsewhere\n";
}

}  // namespace xgen
