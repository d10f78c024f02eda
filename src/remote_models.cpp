#include "remote_models.h"

#include "base/log.h"
#include "http/url.h"
#include "remote/openai_service.h"

namespace xgen {
namespace {

Result<http::Url> base_url(const config::Model& model) {
  auto url = http::parse_url(model.remote.urls.front());
  if (url && url->target.find('?') == std::string::npos) return url;
  return make_error(ErrorCode::invalid_argument,
                    model.where + ": model '" + model.name + "': urls: '" + model.remote.urls.front() +
                        "': " + (url ? "the base of an API has no query" : url.error().message));
}

}  // namespace

Result<registry::ModelLoader::Need> RemoteModelLoader::need() {
  if (const auto url = base_url(model_); !url) return url.error();
  return Need{};
}

Result<std::shared_ptr<inference::ModelService>> RemoteModelLoader::load(std::shared_ptr<MemoryBudget::Account> account,
                                                                         const std::function<void(double)>& progress) {
  (void)account;
  (void)progress;
  const config::Remote& remote = model_.remote;
  auto url = base_url(model_);
  if (!url) return std::move(url).error();
  remote::OpenAiOptions options;
  options.name = model_.name;
  options.model = remote.model;
  options.url = *std::move(url);
  options.dialect = remote::dialect_of_name(remote.dialect).value_or(remote::Dialect::unknown);
  options.api_key_file = remote.api_key_file;
  options.headers = remote.headers;
  options.ca_file = remote.ca_file;
  options.connect_timeout = remote.connect_timeout;
  options.first_byte_timeout = remote.first_byte_timeout;
  options.idle_timeout = remote.idle_timeout;
  options.health_interval = remote.health_interval;
  options.max_requests = static_cast<std::size_t>(remote.max_requests);
  log::info("loader", "model ready", {{"model", model_.name}, {"engine", "openai"}, {"url", remote.urls.front()}});
  return remote::make_openai_service(std::move(options), client_->get());
}

std::string RemoteModelLoader::plan_text() const {
  const config::Remote& remote = model_.remote;
  return model_.name + " (remote: " + (remote.model.empty() ? model_.name : remote.model) + " at " +
         remote.urls.front() + ", " + model_.settings.engine +
         (remote.dialect == "auto" ? std::string() : ", " + remote.dialect) +
         (remote.api_key_file.empty() ? "" : ", with a key") + ")\n  total      " + std::string(9, ' ') +
         "0 B   computed elsewhere\n";
}

}  // namespace xgen
