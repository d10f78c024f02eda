#include "remote/openai_watch.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "base/log.h"
#include "remote/load_report.h"
#include "remote/reply.h"

namespace xgen::remote {

namespace json = boost::json;

namespace {

constexpr std::uint64_t kMaxList = 4 << 20;     // bytes of a list of models
constexpr std::uint64_t kMaxMetrics = 8 << 20;  // bytes of a page of metrics
constexpr std::chrono::milliseconds kHealthTimeout{5'000};

}  // namespace

void OpenAiWatch::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  timer_.reset();
  call_.reset();
  load_timer_.reset();
  load_call_.reset();
}

inference::Health OpenAiWatch::health() const {
  std::lock_guard lock(mutex_);
  return health_;
}

std::optional<inference::Load> OpenAiWatch::load() const {
  std::lock_guard lock(mutex_);
  return load_;
}

void OpenAiWatch::look_at_load() {
  std::string key;
  auto call = endpoint_->call("GET", endpoint_->root() + "/metrics", &key);
  if (!call) return;  // health() tells
  call->connect_timeout = std::min(call->connect_timeout, kHealthTimeout);
  call->first_byte_timeout = call->idle_timeout = kHealthTimeout;
  call->max_body = kMaxMetrics;
  auto reply = std::make_shared<Reply>([weak = weak_from_this(), before = endpoint_->stats.snapshot().unfinished()](
                                           const auto& head, std::string_view body, const auto& end) {
    const auto self = weak.lock();
    if (self == nullptr) return;
    auto load = end.status && head.status == 200 ? read_load(body, self->endpoint_->options.model) : std::nullopt;
    // What the server saw of ours lies between what there was before and after.
    if (load) load->own = static_cast<double>(std::max(before, self->endpoint_->stats.snapshot().unfinished()));
    std::lock_guard lock(self->mutex_);
    if (self->stopped_) return;
    self->load_ = load;
    self->load_timer_ = self->endpoint_->client.after(self->endpoint_->options.load_interval, [weak] {
      if (const auto again = weak.lock()) again->look_at_load();
    });
  });
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  load_call_ = endpoint_->client.start(*std::move(call), std::move(reply));
}

void OpenAiWatch::look() {
  std::string key;
  auto call = endpoint_->call("GET", endpoint_->base() + "/models", &key);
  if (!call) return note(call.error().message);
  call->connect_timeout = std::min(call->connect_timeout, kHealthTimeout);
  call->first_byte_timeout = call->idle_timeout = kHealthTimeout;
  call->max_body = kMaxList;
  auto reply = std::make_shared<Reply>([weak = weak_from_this(), upstream = endpoint_->upstream(std::move(key))](
                                           const auto& head, std::string_view body, const auto& end) {
    const auto self = weak.lock();
    if (self == nullptr) return;
    if (!end.status)
      self->note(error_of_call(end, upstream).message);
    else if (head.status == 401 || head.status == 403 || head.status >= 500)
      self->note(error_of_answer(head, body, upstream).message);
    else
      self->note(head.status == 200 ? self->read(body) : std::string());
  });
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  call_ = endpoint_->client.start(*std::move(call), std::move(reply));
}

// The list of models; what is wrong with it, if anything.
std::string OpenAiWatch::read(std::string_view body) {
  const auto parsed = parse_json(body);
  const json::object* list = parsed ? parsed->if_object() : nullptr;
  const json::value* data = list == nullptr ? nullptr : list->if_contains("data");
  if (data == nullptr || !data->is_array()) return {};
  std::string names;
  for (const json::value& each : data->get_array()) {
    const json::object* card = each.if_object();
    const json::value* id = card == nullptr ? nullptr : card->if_contains("id");
    if (id == nullptr || !id->is_string()) continue;
    const std::string name(id->get_string().data(), id->get_string().size());
    if (name == endpoint_->options.model) {
      learn(*card);
      return {};
    }
    if (names.size() < 500) names += (names.empty() ? "" : ", ") + name;
  }
  return endpoint_->upstream({}).says("does not serve '" + endpoint_->options.model + "'" +
                                      (names.empty() ? std::string() : ", but " + names));
}

void OpenAiWatch::learn(const json::object& card) {
  const json::value* length = card.if_contains("max_model_len");
  if (length != nullptr && length->is_int64() && length->get_int64() > 0 && length->get_int64() < (1 << 30))
    endpoint_->max_model_len.store(static_cast<int>(length->get_int64()));
  const json::value* owner = card.if_contains("owned_by");
  if (endpoint_->options.dialect == Dialect::unknown && owner != nullptr && owner->is_string())
    endpoint_->dialect.store(dialect_of_owner({owner->get_string().data(), owner->get_string().size()}));
}

void OpenAiWatch::note(const std::string& fault) {
  using State = inference::Health::State;
  const State now = fault.empty() ? State::ready : State::degraded;
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  if (now != health_.state) {
    if (now == State::ready)
      log::info("remote", "engine is well again",
                {{"model", endpoint_->options.name}, {"url", endpoint_->options.url.text()}});
    else
      log::warn("remote", "engine is not well", {{"model", endpoint_->options.name}, {"reason", fault}});
  }
  health_.state = now;
  health_.detail = fault;
  timer_ = endpoint_->client.after(endpoint_->options.health_interval, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->look();
  });
}

}  // namespace xgen::remote
