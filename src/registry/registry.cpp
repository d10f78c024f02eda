#include "registry/registry.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/units.h"
#include "registry/slot.h"

namespace xgen::registry {
namespace {

using Service = std::shared_ptr<inference::ModelService>;
using Account = std::shared_ptr<MemoryBudget::Account>;

constexpr double kFetchShare = 0.9;  // of the progress of a load whose files had to be fetched

// Work for one thread, which sleeps until there is some or a time has come.
class Inbox {
 public:
  using Job = std::function<void()>;

  void push(Job job) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return;
      jobs_.push_back(std::move(job));
    }
    arrived_.notify_one();
  }
  // Nothing is taken after this; what is queued is dropped.
  void close() {
    std::deque<Job> dropped;
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
      dropped.swap(jobs_);
    }
    arrived_.notify_all();
  }
  // The next job; empty when `until` has come; false when it is closed.
  bool wait(std::optional<Clock::time_point> until, Job& job) {
    std::unique_lock lock(mutex_);
    const auto awake = [this] { return closed_ || !jobs_.empty(); };
    if (until) {
      arrived_.wait_until(lock, *until, awake);
    } else {
      arrived_.wait(lock, awake);
    }
    if (closed_) return false;
    job = nullptr;
    if (!jobs_.empty()) {
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Job> jobs_;
  bool closed_ = false;
};

Error loading_error(const std::string& name, double progress, bool fetching = false) {
  Error error = make_error(ErrorCode::unavailable,
                           "The model '" + name + "' is still " + (fetching ? "being downloaded" : "loading") + " (" +
                               std::to_string(static_cast<int>(progress * 100)) + "%).",
                           "model");
  error.retry_after_s = 1;
  return error;
}

Error failed_error(const std::string& name, const std::string& reason) {
  Error error = make_error(ErrorCode::unavailable, "The model '" + name + "' failed to load: " + reason, "model");
  error.retry_after_s = 30;
  return error;
}

Error ended_error(const std::string& name, const std::string& reason) {
  Error error = make_error(ErrorCode::unavailable, "The model '" + name + "' has failed: " + reason, "model");
  error.retry_after_s = 30;
  return error;
}

Error unloaded_error(const std::string& name) {
  Error error = make_error(ErrorCode::unavailable, "The model '" + name + "' was unloaded by an operator.", "model");
  error.retry_after_s = 30;
  return error;
}

}  // namespace

std::string_view state_name(ModelState state) {
  switch (state) {
    case ModelState::unloaded:
      return "unloaded";
    case ModelState::loading:
      return "loading";
    case ModelState::ready:
      return "ready";
    case ModelState::sleeping:
      return "sleeping";
    case ModelState::draining:
      return "draining";
    case ModelState::failed:
      return "failed";
  }
  return "unknown";
}

Status ModelLoader::fetch(const std::function<void(double, std::string)>&, const std::stop_token&) { return {}; }

std::vector<std::uint64_t> share(std::uint64_t budget, const std::vector<ModelLoader::Need>& needs) {
  std::vector<std::uint64_t> shares;
  std::vector<std::size_t> hungry;  // by what they want beyond their least
  for (const ModelLoader::Need& need : needs) {
    hungry.push_back(shares.size());
    shares.push_back(need.least);
    budget -= std::min(budget, need.least);
  }
  const auto wish = [&](std::size_t i) { return std::max(needs[i].wanted, needs[i].least) - needs[i].least; };
  std::sort(hungry.begin(), hungry.end(), [&](std::size_t a, std::size_t b) { return wish(a) < wish(b); });
  for (std::size_t i = 0; i < hungry.size(); ++i) {
    const std::uint64_t part = std::min(wish(hungry[i]), budget / (hungry.size() - i));
    shares[hungry[i]] += part;
    budget -= part;
  }
  return shares;
}

// The thread `decide_` runs every change of state, one after the other, and never waits; `load_` runs one load at a
// time; what has to be fetched first waits for a thread of its own before it comes to `load_`. `mutex_` guards what
// other threads read; slots have their own locks, taken after it. A service that leaves its slot is destroyed by
// `decide_` when its last request's handle has gone, and what it had reserved is free then.
class Registry::Impl : public std::enable_shared_from_this<Registry::Impl> {
 public:
  Impl(std::shared_ptr<MemoryBudget> budget, RegistryOptions options) : budget_(std::move(budget)), options_(options) {}

  void start() {
    load_ = std::thread([this] { run_loads(); });
    decide_ = std::thread([this] { run_decisions(); });
  }
  void stop();

  Status apply(std::vector<ModelDefinition> definitions);
  enum class Action : std::uint8_t { load, unload, sleep };
  void act(Action action, std::string name, Done done);

  Result<Service> find(std::string_view name) const;
  Result<ModelEntry> entry(std::string_view name) const;
  std::vector<ModelEntry> list() const;
  Counts counts() const {
    std::shared_lock lock(mutex_);
    return counts_;
  }
  const MemoryBudget& budget() const { return *budget_; }

 private:
  // The files of one model on their way here.
  struct Fetch {
    std::shared_ptr<ModelLoader> loader;
    std::stop_source stop;
    std::thread thread;
    std::mutex mutex;
    std::string what;  // it does
    std::string doing() {
      std::lock_guard lock(mutex);
      return what;
    }
  };

  // What a model becomes when its service has gone.
  enum class After : std::uint8_t { unloaded, sleeping };

  struct Model {
    // Guarded by mutex_ for writing by the deciding thread and reading by others.
    ModelDefinition definition;
    std::shared_ptr<Slot> slot;
    ModelState state = ModelState::unloaded;
    std::string detail;
    std::int64_t created = 0;
    bool waits = false;  // requests wait while it is absent
    std::shared_ptr<std::atomic<double>> progress = std::make_shared<std::atomic<double>>(0);
    std::weak_ptr<MemoryBudget::Account> account;  // of what serves or sleeps
    std::shared_ptr<Fetch> fetch;                  // one that runs, though it may have been stopped

    // Of the deciding thread.
    std::optional<ModelDefinition> next;  // replaces `definition` with its next load
    Account asleep;                       // what it keeps while it sleeps
    bool queued = false;
    bool removed = false;
    bool evicted = false;  // its service is on its way out to make room
    After after = After::unloaded;
    int leaving = 0;  // services that have left the slot and are not gone
    Clock::time_point failed_at;
    std::vector<Done> load_waiters;
    std::vector<Done> unload_waiters;
  };
  using ModelPtr = std::shared_ptr<Model>;

  struct Leaving {
    std::weak_ptr<inference::ModelService> service;
    Clock::time_point deadline;
    bool closed = false;
  };

  // The load at the head of the queue.
  struct Current {
    ModelPtr model;
    ModelDefinition definition;
    bool asked = false;                     // its loader, for the need
    std::optional<ModelLoader::Need> need;  // known
    bool begun = false;
  };

  struct Guard;

  void run_loads();
  void run_decisions();
  std::optional<Clock::time_point> run_timers();

  void apply_now(std::vector<ModelDefinition> definitions);
  void define(ModelDefinition definition);
  void replace(const ModelPtr& model, ModelDefinition definition);
  void remove(const ModelPtr& model);
  void load_now(const ModelPtr& model, Done done);
  void unload_now(const ModelPtr& model, Done done);
  void sleep_now(const ModelPtr& model, Done done);

  void wanted(const ModelPtr& model);
  void queue_load(const ModelPtr& model);
  void forget_load(const ModelPtr& model);
  void begin(const ModelPtr& model);
  void end_fetch(const ModelPtr& model, const std::shared_ptr<Fetch>& fetch, const Status& outcome);
  void advance();
  bool evict_one();
  void begin_load(std::uint64_t bytes);
  void end_load(Result<Service> outcome, Account account);
  void fail_load(const Error& error);
  void failed(const ModelPtr& model, const ModelDefinition& tried, const Error& error);
  void finish_load();
  Service guard(const ModelPtr& model, std::shared_ptr<ModelLoader> loader, Service service, Account account);
  void watch(const ModelPtr& model, inference::ModelService& service);
  void service_failed(const ModelPtr& model, const inference::ModelService* service, const Error& error);
  void leave(const ModelPtr& model, Service service, After after);
  void service_gone(const ModelPtr& model, const std::shared_ptr<ModelLoader>& loader, Account account);
  void wake_again(Model& model);

  void set_state(Model& model, ModelState state, std::string detail = {});
  static void answer(std::vector<Done>& waiters, const Status& status);

  Error unknown(std::string_view name) const;
  static ModelEntry describe(const Model& model);

  const std::shared_ptr<MemoryBudget> budget_;
  const RegistryOptions options_;
  Inbox decisions_;
  Inbox loads_;
  std::thread decide_;
  std::thread load_;

  mutable std::shared_mutex mutex_;
  std::vector<ModelPtr> models_;
  std::map<std::string, ModelPtr, std::less<>> by_name_;
  Counts counts_;

  // Of the deciding thread.
  std::deque<ModelPtr> load_queue_;
  std::deque<ModelPtr> fetch_queue_;    // for one of the max_fetches
  int fetches_ = 0;                     // that run
  std::function<void()> when_fetched_;  // at the end, with the last of them
  std::optional<Current> current_;
  std::vector<Leaving> leaving_;
  int evicting_ = 0;
};

// --- What other threads ask.

Error Registry::Impl::unknown(std::string_view name) const {
  std::string known;
  for (const ModelPtr& model : models_) {
    if (known.size() > 500) {
      known += ", …";
      break;
    }
    known += (known.empty() ? "'" : ", '") + model->definition.name + "'";
  }
  return make_error(ErrorCode::not_found,
                    "The model '" + std::string(name.substr(0, 200)) +
                        "' does not exist. Served here: " + (known.empty() ? "none" : known) + ".",
                    "model");
}

Result<Service> Registry::Impl::find(std::string_view name) const {
  std::shared_lock lock(mutex_);
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return unknown(name);
  const Model& model = *it->second;
  // A model that should be there from the start is not waited for: clients and load balancers have other places to go.
  if (model.state == ModelState::loading && !model.waits)
    return loading_error(model.definition.name, model.progress->load(), model.fetch != nullptr);
  return Service(model.slot);
}

ModelEntry Registry::Impl::describe(const Model& model) {
  ModelEntry entry;
  entry.name = model.definition.name;
  entry.aliases = model.definition.aliases;
  entry.state = model.state;
  if (model.state == ModelState::loading) entry.progress = model.progress->load();
  if (model.state == ModelState::ready) entry.progress = 1;
  entry.detail = model.fetch != nullptr && model.state == ModelState::loading ? model.fetch->doing() : model.detail;
  entry.created = model.created;
  entry.on_demand = model.definition.on_demand;
  entry.pin = model.definition.pin;
  if (const Account account = model.account.lock()) {
    entry.reserved = account->reserved();
    entry.borrowed = account->borrowed();
  }
  entry.in_use = model.slot->in_use();
  entry.service = model.slot->service();
  return entry;
}

Result<ModelEntry> Registry::Impl::entry(std::string_view name) const {
  std::shared_lock lock(mutex_);
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return unknown(name);
  return describe(*it->second);
}

std::vector<ModelEntry> Registry::Impl::list() const {
  std::shared_lock lock(mutex_);
  std::vector<ModelEntry> out;
  for (const ModelPtr& model : models_) out.push_back(describe(*model));
  return out;
}

Status Registry::Impl::apply(std::vector<ModelDefinition> definitions) {
  std::set<std::string_view> names;
  for (const ModelDefinition& each : definitions) {
    if (!names.insert(each.name).second)
      return make_error(ErrorCode::invalid_argument, "the model name '" + each.name + "' is used twice");
    for (const std::string& alias : each.aliases)
      if (!names.insert(alias).second)
        return make_error(ErrorCode::invalid_argument, "the model name '" + alias + "' is used twice");
  }
  auto applied = std::make_shared<std::promise<void>>();
  auto shared = std::make_shared<std::vector<ModelDefinition>>(std::move(definitions));
  decisions_.push([this, shared, applied] {
    apply_now(std::move(*shared));
    applied->set_value();
  });
  applied->get_future().wait();
  return {};
}

void Registry::Impl::act(Action action, std::string name, Done done) {
  decisions_.push([this, action, name = std::move(name), done = std::move(done)]() mutable {
    const auto it = by_name_.find(name);
    if (it == by_name_.end()) return done(unknown(name));
    const ModelPtr model = it->second;
    if (action == Action::load) load_now(model, std::move(done));
    if (action == Action::unload) unload_now(model, std::move(done));
    if (action == Action::sleep) sleep_now(model, std::move(done));
  });
}

// --- The two threads.

void Registry::Impl::run_loads() {
  Inbox::Job job;
  while (loads_.wait({}, job)) {
    job();
    job = nullptr;  // with what it holds
  }
}

void Registry::Impl::run_decisions() {
  Inbox::Job job;
  for (;;) {
    const auto next = run_timers();
    if (!decisions_.wait(next, job)) return;
    if (job) job();
    job = nullptr;  // with what it holds
  }
}

// Acts on what has become due; when the next is.
std::optional<Clock::time_point> Registry::Impl::run_timers() {
  const Clock::time_point now = Clock::now();
  std::optional<Clock::time_point> next;
  const auto at = [&next](Clock::time_point time) { next = next ? std::min(*next, time) : time; };

  std::erase_if(leaving_, [](const Leaving& each) { return each.service.expired(); });
  for (Leaving& each : leaving_) {
    if (each.closed) continue;
    if (now < each.deadline) {
      at(each.deadline);
      continue;
    }
    each.closed = true;
    if (const Service service = each.service.lock()) service->close();
  }
  for (const ModelPtr& model : models_) {
    if (auto due = model->slot->next_deadline()) {
      if (*due <= now) {
        model->slot->expire(now,
                            loading_error(model->definition.name, model->progress->load(), model->fetch != nullptr));
        due = model->slot->next_deadline();
      }
      if (due) at(*due);
    }
    const auto idle = model->definition.idle_unload;
    if (model->state == ModelState::ready && idle.count() > 0) {
      if (Service service = model->slot->hold_if_unused(now - idle)) {
        log::info("registry", "unloading an idle model", {{"model", model->definition.name}});
        model->waits = true;
        leave(model, std::move(service), After::unloaded);
      } else {
        at(std::max(model->slot->last_used() + idle, now + std::chrono::seconds(1)));
      }
    }
    if (model->state == ModelState::failed && model->waits && model->failed_at != Clock::time_point()) {
      const Clock::time_point again = model->failed_at + options_.retry_failed_after;
      if (now >= again) {
        model->failed_at = {};
        model->slot->hold();
      } else {
        at(again);
      }
    }
  }
  return next;
}

void Registry::Impl::stop() {
  // First the loads: one that ended later would put its service into a slot that nobody empties any more.
  loads_.close();
  load_.join();
  auto ended = std::make_shared<std::promise<void>>();
  decisions_.push([this, ended] {
    load_queue_.clear();
    fetch_queue_.clear();
    const Error error = make_error(ErrorCode::unavailable, "The server is shutting down.");
    for (const ModelPtr& model : models_) {
      model->slot->refuse(error);
      answer(model->load_waiters, error);
      answer(model->unload_waiters, {});
      model->queued = false;
      if (model->fetch != nullptr) model->fetch->stop.request_stop();
    }
    if (fetches_ == 0) return ended->set_value();
    when_fetched_ = [ended] { ended->set_value(); };
  });
  ended->get_future().wait();
  decisions_.close();
  decide_.join();
}

// --- The list of models.

void Registry::Impl::set_state(Model& model, ModelState state, std::string detail) {
  std::unique_lock lock(mutex_);
  model.state = state;
  model.detail = std::move(detail);
}

void Registry::Impl::answer(std::vector<Done>& waiters, const Status& status) {
  for (Done& each : std::exchange(waiters, {}))
    if (each) each(status);
}

void Registry::Impl::apply_now(std::vector<ModelDefinition> definitions) {
  std::map<std::string, ModelPtr, std::less<>> old;
  for (const ModelPtr& model : models_) old[model->definition.name] = model;
  for (const auto& [name, model] : old) {
    const bool stays = std::any_of(definitions.begin(), definitions.end(),
                                   [&](const ModelDefinition& each) { return each.name == model->definition.name; });
    if (!stays) remove(model);
  }
  std::vector<std::string> order;
  for (ModelDefinition& each : definitions) {
    order.push_back(each.name);
    const auto it = old.find(each.name);
    if (it == old.end()) {
      define(std::move(each));
    } else {
      replace(it->second, std::move(each));
    }
  }
  std::unique_lock lock(mutex_);
  by_name_.clear();
  for (const ModelPtr& model : models_) {
    by_name_[model->definition.name] = model;
    const auto& aliases = model->next ? model->next->aliases : model->definition.aliases;
    for (const std::string& alias : aliases) by_name_[alias] = model;
  }
  std::sort(models_.begin(), models_.end(), [&](const ModelPtr& a, const ModelPtr& b) {
    const auto place = [&](const ModelPtr& each) {
      return std::find(order.begin(), order.end(), each->definition.name) - order.begin();
    };
    return place(a) < place(b);
  });
}

void Registry::Impl::define(ModelDefinition definition) {
  auto model = std::make_shared<Model>();
  const std::weak_ptr<Impl> self = weak_from_this();
  const std::weak_ptr<Model> weak = model;
  model->slot = std::make_shared<Slot>(options_.max_waiting, [self, weak] {
    const auto impl = self.lock();
    if (impl == nullptr) return;
    impl->decisions_.push([impl = impl.get(), weak] {
      if (const ModelPtr wanted_model = weak.lock()) impl->wanted(wanted_model);
    });
  });
  model->created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  model->waits = definition.on_demand;
  model->definition = std::move(definition);
  if (!model->waits) model->slot->refuse(loading_error(model->definition.name, 0));
  {
    std::unique_lock lock(mutex_);
    models_.push_back(model);
  }
  if (!model->definition.on_demand) queue_load(model);
}

void Registry::Impl::replace(const ModelPtr& model, ModelDefinition definition) {
  if (definition.fingerprint == model->definition.fingerprint) {
    definition.loader = model->definition.loader;
    if (model->next && model->fetch != nullptr) forget_load(model);  // of what was to come instead
    model->next.reset();
    std::unique_lock lock(mutex_);
    model->definition = std::move(definition);
    return;
  }
  if (current_ && current_->model == model && current_->definition.fingerprint == definition.fingerprint) {
    definition.loader = current_->definition.loader;
    current_->definition = std::move(definition);
    model->next.reset();
    return;
  }
  const bool on_demand = definition.on_demand;
  const bool absent =
      model->slot->service() == nullptr && model->leaving == 0 && !(current_ && current_->model == model);
  if (absent) {
    if (model->asleep) model->definition.loader->release();
    model->asleep.reset();
    std::unique_lock lock(mutex_);
    model->definition = std::move(definition);
    model->waits = model->waits || on_demand;
  } else {
    model->next = std::move(definition);
  }
  if (model->fetch != nullptr) model->fetch->stop.request_stop();  // it is another model's; end_fetch begins this one's
  if (!on_demand || model->slot->service() != nullptr) {
    queue_load(model);
  } else if (model->state != ModelState::loading) {
    set_state(*model, ModelState::unloaded);
    model->slot->hold();
  }
}

void Registry::Impl::remove(const ModelPtr& model) {
  model->removed = true;
  forget_load(model);
  const Error error = make_error(ErrorCode::not_found,
                                 "The model '" + model->definition.name + "' is not served here any more.", "model");
  if (model->asleep) model->definition.loader->release();
  model->asleep.reset();
  {
    std::unique_lock lock(mutex_);
    std::erase(models_, model);
  }
  if (Service service = model->slot->refuse(error)) leave(model, std::move(service), After::unloaded);
  answer(model->unload_waiters, {});
}

// --- Loading.

void Registry::Impl::wanted(const ModelPtr& model) {
  if (model->removed || model->slot->waiting() == 0) return;
  if (model->slot->service() == nullptr) queue_load(model);
}

void Registry::Impl::queue_load(const ModelPtr& model) {
  if (model->queued) return;
  model->queued = true;
  model->progress->store(0);
  // A model that is being replaced goes on serving.
  if (model->slot->service() == nullptr) {
    set_state(*model, ModelState::loading);
    if (model->waits) model->slot->hold();
  }
  begin(model);
}

// The first step of a load that is wanted: fetch, or wait for its turn.
void Registry::Impl::begin(const ModelPtr& model) {
  const std::shared_ptr<ModelLoader> loader = model->next ? model->next->loader : model->definition.loader;
  if (!loader->fetches()) {
    load_queue_.push_back(model);
    return advance();
  }
  if (model->fetch != nullptr) return;  // one that was stopped is still ending; end_fetch comes back here
  if (fetches_ >= options_.max_fetches) {
    fetch_queue_.push_back(model);
    return;
  }
  ++fetches_;
  auto fetch = std::make_shared<Fetch>();
  fetch->loader = loader;
  {
    std::unique_lock lock(mutex_);
    model->fetch = fetch;
  }
  fetch->thread = std::thread([this, model, fetch] {
    Status outcome;
    try {
      outcome = fetch->loader->fetch(
          [&](double share, std::string what) {
            model->progress->store(share * kFetchShare);
            std::lock_guard lock(fetch->mutex);
            fetch->what = std::move(what);
          },
          fetch->stop.get_token());
    } catch (const std::exception& error) {
      outcome = make_error(ErrorCode::internal, std::string("fetching it failed: ") + error.what());
    }
    decisions_.push([this, model, fetch, outcome] { end_fetch(model, fetch, outcome); });
  });
}

void Registry::Impl::end_fetch(const ModelPtr& model, const std::shared_ptr<Fetch>& fetch, const Status& outcome) {
  fetch->thread.join();
  --fetches_;
  {
    std::unique_lock lock(mutex_);
    model->fetch.reset();
  }
  if (when_fetched_) {
    if (fetches_ == 0) when_fetched_();
    return;
  }
  const ModelDefinition wanted = model->next ? *model->next : model->definition;
  if (!model->queued) {
    // Nobody wants it any more.
  } else if (fetch->stop.stop_requested() || fetch->loader != wanted.loader) {
    begin(model);
  } else if (outcome) {
    load_queue_.push_back(model);
    advance();
  } else {
    model->queued = false;
    failed(model, wanted, outcome.error());
    if (model->next) queue_load(model);
  }
  while (fetches_ < options_.max_fetches && !fetch_queue_.empty()) {
    const ModelPtr next = fetch_queue_.front();
    fetch_queue_.pop_front();
    begin(next);
  }
}

// Takes the model out of the queue, if its load has not begun.
void Registry::Impl::forget_load(const ModelPtr& model) {
  if (!model->queued || (current_ && current_->model == model)) return;
  std::erase(load_queue_, model);
  std::erase(fetch_queue_, model);
  if (model->fetch != nullptr) model->fetch->stop.request_stop();
  model->queued = false;
  answer(model->load_waiters, make_error(ErrorCode::unavailable, "The load was called off."));
}

// Moves the load at the head of the queue on: what does it need, is there room, load.
void Registry::Impl::advance() {
  if (!current_) {
    if (load_queue_.empty()) return;
    const ModelPtr model = load_queue_.front();
    load_queue_.pop_front();
    current_ = Current{model, model->next ? *model->next : model->definition, false, {}, false};
  }
  if (current_->begun || (current_->asked && !current_->need)) return;  // on the other thread
  Model& model = *current_->model;
  if (model.removed) return finish_load();
  const bool replaces = model.slot->service() != nullptr;
  // The service of the same definition must be gone before its loader works again.
  if (!replaces && model.leaving > 0) return;
  if (!std::exchange(current_->asked, true)) {
    loads_.push([this, loader = current_->definition.loader] {
      const Result<ModelLoader::Need> need = loader->need();
      decisions_.push([this, need] {
        if (!need) return fail_load(need.error());
        current_->need = *need;
        advance();
      });
    });
    return;
  }
  const std::uint64_t held = model.asleep ? model.asleep->reserved() : 0;
  const std::uint64_t least = std::max(current_->need->least, held) - held;
  const std::uint64_t wanted = std::max(current_->need->wanted, held) - held;
  const std::uint64_t room = budget_->unreserved();
  if (room >= least) return begin_load(std::min(room, wanted));
  if (evicting_ > 0 || evict_one()) return;  // service_gone comes back here
  if (replaces) {
    // No room for both: the old one goes first, and requests wait for the new one.
    const ModelPtr kept = current_->model;
    kept->waits = true;
    return leave(kept, kept->slot->hold(), After::unloaded);
  }
  std::string list;
  for (const MemoryBudget::Use& use : budget_->uses())
    if (use.reserved > 0) list += (list.empty() ? "" : ", ") + ("'" + use.owner + "' " + format_bytes(use.reserved));
  Error error =
      make_error(ErrorCode::unavailable, "The model '" + current_->definition.name + "' needs " +
                                             format_bytes(current_->need->least) + ", but of the memory budget of " +
                                             format_bytes(budget_->total()) + " only " + format_bytes(room + held) +
                                             " is free" + (list.empty() ? "" : " (in use: " + list + ")") + ".");
  error.retry_after_s = current_->need->least <= budget_->total() ? 5 : 0;  // 0: never
  fail_load(error);
}

// The model that was used longest ago, of those that nobody uses.
bool Registry::Impl::evict_one() {
  std::vector<ModelPtr> candidates;
  for (const ModelPtr& model : models_) {
    const bool goes = !model->definition.pin && model != current_->model &&
                      (model->asleep != nullptr || (model->state == ModelState::ready && !model->slot->in_use()));
    if (goes) candidates.push_back(model);
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const ModelPtr& a, const ModelPtr& b) { return a->slot->last_used() < b->slot->last_used(); });
  for (const ModelPtr& model : candidates) {
    log::info("registry", "evicting a model", {{"model", model->definition.name}, {"for", current_->definition.name}});
    if (model->asleep) {
      model->asleep.reset();
      model->definition.loader->release();
      set_state(*model, ModelState::unloaded);
      {
        std::unique_lock lock(mutex_);
        ++counts_.evictions;
      }
      advance();
      return true;
    }
    Service service = model->slot->hold_if_unused(Clock::now());
    if (service == nullptr) continue;
    model->waits = true;
    model->evicted = true;
    ++evicting_;
    {
      std::unique_lock lock(mutex_);
      ++counts_.evictions;
    }
    leave(model, std::move(service), After::unloaded);
    return true;
  }
  return false;
}

void Registry::Impl::begin_load(std::uint64_t bytes) {
  current_->begun = true;
  loads_.push([this, bytes, definition = current_->definition, account = std::move(current_->model->asleep),
               progress = current_->model->progress]() mutable {
    const double fetched = progress->load();
    Result<Service> outcome = Service();
    if (account != nullptr) {
      if (Status grown = budget_->grow(*account, bytes, options_.reclaim_timeout); !grown)
        outcome = std::move(grown).error();
    } else if (auto reserved = budget_->reserve(definition.name, bytes, options_.reclaim_timeout); reserved.ok()) {
      account = *std::move(reserved);
    } else {
      outcome = std::move(reserved).error();
    }
    if (outcome)
      outcome =
          definition.loader->load(account, [&](double share) { progress->store(fetched + (1 - fetched) * share); });
    // Everything goes along: a reference that stayed here would keep the memory reserved.
    decisions_.push([this, outcome = std::move(outcome), account = std::move(account)]() mutable {
      end_load(std::move(outcome), std::move(account));
    });
  });
}

void Registry::Impl::end_load(Result<Service> outcome, Account account) {
  const ModelPtr model = current_->model;
  if (!outcome) {
    account.reset();
    current_->definition.loader->release();
    return fail_load(outcome.error());
  }
  Service service = guard(model, current_->definition.loader, *std::move(outcome), account);
  if (model->removed) {
    leave(model, std::move(service), After::unloaded);
    return finish_load();
  }
  const Service old = model->slot->service();
  {
    std::unique_lock lock(mutex_);
    model->definition = current_->definition;
    model->state = ModelState::ready;
    model->detail.clear();
    model->account = account;
    model->waits = model->definition.on_demand;
    ++counts_.loads;
  }
  account.reset();
  if (model->next && model->next->fingerprint == model->definition.fingerprint) model->next.reset();
  inference::ModelService& opened = *service;
  model->slot->open(std::move(service));
  watch(model, opened);
  if (old != nullptr) {
    ++model->leaving;
    leaving_.push_back({old, Clock::now() + options_.drain_timeout, false});
  }
  answer(model->load_waiters, {});
  finish_load();
  if (!model->unload_waiters.empty()) unload_now(model, nullptr);
}

void Registry::Impl::fail_load(const Error& error) {
  failed(current_->model, current_->definition, error);
  finish_load();
}

void Registry::Impl::failed(const ModelPtr& model, const ModelDefinition& tried, const Error& error) {
  const std::string name = model->definition.name;
  log::error("registry", "a model failed to load", {{"model", name}, {"reason", error.message}});
  const bool still_serves = model->slot->service() != nullptr;
  const bool no_room = error.code == ErrorCode::unavailable && error.retry_after_s > 0 && !still_serves;
  if (model->next && model->next->fingerprint == tried.fingerprint) model->next.reset();
  {
    std::unique_lock lock(mutex_);
    ++counts_.failures;
    // What could not be replaced goes on as it was; what found no room may find some later.
    model->state = still_serves ? ModelState::ready : no_room ? ModelState::unloaded : ModelState::failed;
    model->detail = error.message;
    if (!still_serves) model->definition = tried;
  }
  if (!still_serves && !model->removed) {
    Error shown = failed_error(name, error.message);
    model->failed_at = Clock::now();
    if (no_room) shown = error;
    model->slot->refuse(shown);
    if (no_room && model->waits) model->slot->hold();
  }
  answer(model->load_waiters, error);
  answer(model->unload_waiters, {});
}

void Registry::Impl::finish_load() {
  const ModelPtr model = current_->model;
  model->queued = false;
  current_.reset();
  if (!model->removed && model->next) queue_load(model);
  advance();
}

// --- Leaving.

// Travels with the last reference to a service, and brings it back to the deciding thread.
struct Registry::Impl::Guard {
  std::weak_ptr<Impl> impl;
  ModelPtr model;
  std::shared_ptr<ModelLoader> loader;
  std::shared_ptr<MemoryBudget> budget;  // outlives the account
  Account account;
  Service service;

  void operator()(inference::ModelService*) {
    // Everything moves along: what stayed here would keep the memory reserved a moment longer.
    if (const auto owner = impl.lock()) {
      owner->decisions_.push([impl = owner.get(), guard = std::move(*this)]() mutable {
        guard.service.reset();
        impl->service_gone(guard.model, guard.loader, std::move(guard.account));
      });
      return;
    }
    // Whoever still looks for the service through a weak reference keeps this object, and must not keep these.
    service.reset();
    account.reset();
    model.reset();
  }
};

Service Registry::Impl::guard(const ModelPtr& model, std::shared_ptr<ModelLoader> loader, Service service,
                              Account account) {
  inference::ModelService* raw = service.get();
  return {raw, Guard{weak_from_this(), model, std::move(loader), budget_, std::move(account), std::move(service)}};
}

void Registry::Impl::watch(const ModelPtr& model, inference::ModelService& service) {
  service.on_failure([self = weak_from_this(), weak = std::weak_ptr<Model>(model), which = &service](Error error) {
    const auto impl = self.lock();
    if (impl == nullptr) return;
    impl->decisions_.push([impl = impl.get(), weak, which, error = std::move(error)] {
      if (const ModelPtr failed = weak.lock()) impl->service_failed(failed, which, error);
    });
  });
}

// An address stands for one service here: what it has pushed comes before the load of another at the same place.
void Registry::Impl::service_failed(const ModelPtr& model, const inference::ModelService* service, const Error& error) {
  if (model->slot->service().get() != service) return;  // it is leaving already
  const std::string& name = model->definition.name;
  log::error("registry", "a model failed", {{"model", name}, {"reason", error.message}});
  model->failed_at = Clock::now();
  leave(model, model->slot->refuse(ended_error(name, error.message)), After::unloaded);
  set_state(*model, model->queued ? ModelState::loading : ModelState::failed, error.message);
  std::unique_lock lock(mutex_);
  ++counts_.failures;
}

void Registry::Impl::leave(const ModelPtr& model, Service service, After after) {
  if (service == nullptr) return;
  model->after = after;
  ++model->leaving;
  leaving_.push_back({service, Clock::now() + options_.drain_timeout, false});
  set_state(*model, ModelState::draining);
}

void Registry::Impl::service_gone(const ModelPtr& model, const std::shared_ptr<ModelLoader>& loader, Account account) {
  --model->leaving;
  if (std::exchange(model->evicted, false)) --evicting_;
  const bool sleeps = model->after == After::sleeping && model->state == ModelState::draining && !model->removed;
  if (sleeps) {
    account->give_back(account->borrowed());
    account->shrink(std::min(account->reserved(), loader->kept_asleep()));
    model->asleep = std::move(account);
    set_state(*model, ModelState::sleeping);
  } else {
    account.reset();
    loader->release();
    ::malloc_trim(0);  // what the threads' heaps keep would add up over many loads
    if (model->state == ModelState::draining && model->leaving == 0) {
      set_state(*model, model->queued ? ModelState::loading : ModelState::unloaded);
    }
  }
  {
    std::unique_lock lock(mutex_);
    ++counts_.unloads;
  }
  if (model->leaving == 0) answer(model->unload_waiters, {});
  // A request may have come for it meanwhile.
  if (!model->removed && model->slot->service() == nullptr && model->slot->waiting() > 0) queue_load(model);
  advance();
}

// --- Operators.

void Registry::Impl::load_now(const ModelPtr& model, Done done) {
  model->load_waiters.push_back(std::move(done));
  if (model->queued) return;
  if (model->slot->service() != nullptr) return answer(model->load_waiters, {});
  {
    std::unique_lock lock(mutex_);
    model->waits = true;
  }
  model->slot->hold();
  queue_load(model);
}

void Registry::Impl::unload_now(const ModelPtr& model, Done done) {
  if (done) model->unload_waiters.push_back(std::move(done));
  forget_load(model);
  if (model->queued && model->slot->service() == nullptr) return;  // end_load unloads it
  {
    std::unique_lock lock(mutex_);
    model->waits = model->definition.on_demand;
  }
  Service service =
      model->definition.on_demand ? model->slot->hold() : model->slot->refuse(unloaded_error(model->definition.name));
  if (service != nullptr) return leave(model, std::move(service), After::unloaded);
  if (model->leaving > 0) {
    model->after = After::unloaded;
    return set_state(*model, ModelState::draining);
  }
  if (model->asleep) model->definition.loader->release();
  model->asleep.reset();
  set_state(*model, ModelState::unloaded);
  answer(model->unload_waiters, {});
}

void Registry::Impl::sleep_now(const ModelPtr& model, Done done) {
  const std::string& name = model->definition.name;
  if (model->state == ModelState::sleeping) return done({});
  if (model->definition.loader->kept_asleep() == 0)
    return done(make_error(ErrorCode::unsupported, "The model '" + name + "' cannot sleep: its engine keeps nothing."));
  if (model->state != ModelState::ready || model->queued)
    return done(make_error(ErrorCode::unavailable,
                           "The model '" + name + "' is " + std::string(state_name(model->state)) + ", not ready."));
  {
    std::unique_lock lock(mutex_);
    model->waits = true;
  }
  model->unload_waiters.push_back(std::move(done));
  leave(model, model->slot->hold(), After::sleeping);
}

// --- Registry.

Registry::Registry(std::shared_ptr<MemoryBudget> budget, RegistryOptions options)
    : impl_(std::make_shared<Impl>(std::move(budget), options)) {
  impl_->start();
}
Registry::~Registry() { impl_->stop(); }

Status Registry::apply(std::vector<ModelDefinition> definitions) { return impl_->apply(std::move(definitions)); }
void Registry::load(std::string_view name, Done done) {
  impl_->act(Impl::Action::load, std::string(name), std::move(done));
}
void Registry::unload(std::string_view name, Done done) {
  impl_->act(Impl::Action::unload, std::string(name), std::move(done));
}
void Registry::sleep(std::string_view name, Done done) {
  impl_->act(Impl::Action::sleep, std::string(name), std::move(done));
}
Result<Service> Registry::find(std::string_view name) const { return impl_->find(name); }
Result<ModelEntry> Registry::entry(std::string_view name) const { return impl_->entry(name); }
std::vector<ModelEntry> Registry::list() const { return impl_->list(); }
Registry::Counts Registry::counts() const { return impl_->counts(); }
const MemoryBudget& Registry::budget() const { return impl_->budget(); }

}  // namespace xgen::registry
