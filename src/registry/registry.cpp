#include "registry/registry.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <stdexcept>
#include <system_error>
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
// When a model that found no room may be asked for again.
constexpr int kRetryForRoomSeconds = 5;

// Work for one thread, which sleeps until there is some or a time has come.
class Inbox {
 public:
  using Job = std::function<void()>;

  // What comes after close() is dropped.
  void push(Job job) {
    {
      std::lock_guard lock(mutex_);
      if (closed_) return;
      jobs_.push_back(std::move(job));
    }
    arrived_.notify_one();
  }
  // What is queued is dropped, too.
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

Error stopped_error() { return make_error(ErrorCode::unavailable, "The server is shutting down."); }

double seconds_since(Clock::time_point time) { return std::chrono::duration<double>(Clock::now() - time).count(); }

// An answer that is owed: whoever drops it unanswered has stopped.
struct Owed {
  explicit Owed(Registry::Done callback) : done(callback ? std::move(callback) : [](const Status&) {}) {}
  ~Owed() {
    if (done) done(stopped_error());
  }
  Owed(const Owed&) = delete;
  Owed& operator=(const Owed&) = delete;
  Registry::Done done;
};

// What is thrown by a loader, for want of memory above all, is the fault of its model alone.
template <class Work>
auto contained(Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::exception& fault) {
    return make_error(ErrorCode::internal, fault.what());
  }
}

void run_until_closed(Inbox& inbox) {
  Inbox::Job job;
  while (inbox.wait({}, job)) {
    job();
    job = nullptr;  // with what it holds
  }
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
    case ModelState::unloading:
      return "unloading";
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
// time, for which what has to be fetched waits on a thread of its own; `end_` destroys services, which wait for the
// step they are in, and lets go of what their loaders hold. `mutex_` guards what other threads read; slots have their
// own locks, taken after it. A service that leaves its slot comes back to `decide_` when its last request's handle has
// gone, and what it had reserved is free then.
class Registry::Impl : public std::enable_shared_from_this<Registry::Impl> {
 public:
  Impl(std::shared_ptr<MemoryBudget> budget, RegistryOptions options) : budget_(std::move(budget)), options_(options) {}

  void start() {
    load_ = std::thread([this] { run_until_closed(loads_); });
    end_ = std::thread([this] { run_until_closed(ends_); });
    decide_ = std::thread([this] { run_decisions(); });
  }
  void stop();

  Status apply(std::vector<ModelDefinition> definitions);
  void add(ModelDefinition definition, Done done);
  enum class Action : std::uint8_t { load, begin_load, unload, sleep, remove };
  void act(Action action, std::string name, Done done);
  void end_requests();

  Result<Service> find(std::string_view name) const;
  Result<ModelEntry> entry(std::string_view name) const;
  std::vector<std::string> fallbacks(std::string_view name) const;
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
  using FetchPtr = std::shared_ptr<Fetch>;

  // What a model becomes when its service has gone.
  enum class After : std::uint8_t { unloaded, sleeping };
  struct Load;

  struct Model {
    // Guarded by mutex_ for writing by the deciding thread and reading by others.
    ModelDefinition definition;
    // As the newest list has them, whether or not that definition is loaded, or ever can be.
    std::vector<std::string> aliases;
    std::vector<std::string> fallbacks;
    std::shared_ptr<Slot> slot;
    ModelState state = ModelState::unloaded;
    std::string detail;
    std::int64_t created = 0;
    bool waits = false;  // requests wait while it is absent
    bool added = false;  // by add(), not by apply()
    // Not in the list any more, but has a name whose new owner is not ready, or requests that wait.
    bool retires = false;
    Counts counts;
    LoadTimes last_load;
    std::shared_ptr<std::atomic<double>> progress = std::make_shared<std::atomic<double>>(0);
    std::weak_ptr<MemoryBudget::Account> account;  // of what serves or sleeps
    FetchPtr fetch;                                // of its load

    // Of the deciding thread.
    std::optional<ModelDefinition> next;    // replaces `definition` with its next load
    std::optional<ModelDefinition> former;  // had to go before `next` was there, and comes back if that fails
    std::string note;                       // becomes the detail of the next load that succeeds
    Account asleep;                         // what it keeps while it sleeps
    std::shared_ptr<Load> load;             // its place in the queue
    bool removed = false;
    bool awaited = false;  // a name of its is kept elsewhere until it is ready
    bool keeps = false;    // keeps a name for another until that is ready
    bool yields = false;   // is about to go: keeps no name
    int leaving = 0;       // how many Leavings are its own
    Clock::time_point failed_at;
    Clock::time_point retry_at;  // loads by itself then
    int retries = 0;             // in vain, one after the other
    std::vector<Done> load_waiters;
    std::vector<Done> unload_waiters;
  };
  using ModelPtr = std::shared_ptr<Model>;
  // What is wanted of it by now, whether or not that is loaded. Of the deciding thread.
  static const ModelDefinition& newest(const Model& model) { return model.next ? *model.next : model.definition; }

  // One that waits in the queue, or is under way.
  struct Load {
    explicit Load(ModelPtr whose) : model(std::move(whose)) {}
    ModelPtr model;
    ModelDefinition definition;             // of what is measured and loaded
    FetchPtr fetch;                         // one that runs; stopped if it is not wanted any more
    bool fetched = false;                   // as far as its loader has to
    std::optional<ModelLoader::Need> need;  // once measured
    enum class Stage : std::uint8_t { waiting, measuring, loading } stage = Stage::waiting;
    LoadTimes times;
    const Clock::time_point queued = Clock::now();
    Clock::time_point began;              // fetching, then loading
    bool stale = false;                   // measured for nothing: the definition has changed meanwhile
    bool again = false;                   // called off, and wanted after all
    std::atomic<bool> called_off{false};  // its outcome is not wanted any more; read by the loading thread
  };
  using LoadPtr = std::shared_ptr<Load>;

  // A service on its way out, or what a sleeping model keeps. Until it is gone its loader does not work for another.
  struct Leaving {
    const inference::ModelService* service;  // null once only memory is left of it
    std::weak_ptr<inference::ModelService> alive;
    ModelPtr model;
    std::shared_ptr<ModelLoader> loader;
    std::uint64_t reserved;  // what it gives back
    After after;
    bool awaited;  // loads wait for its memory
    std::optional<Clock::time_point> deadline;
  };

  struct Guard;

  void run_decisions();
  std::optional<Clock::time_point> run_timers();
  void retry_loads();

  void apply_now(std::vector<ModelDefinition> definitions);
  void add_now(ModelDefinition definition, const Done& done);
  void name_models();
  void retire();
  ModelPtr define(ModelDefinition definition, bool added);
  void replace(const ModelPtr& model, ModelDefinition definition);
  void take_up(Model& model, const ModelDefinition& definition);
  void adopt(const ModelPtr& model, ModelDefinition definition);
  void settle(const ModelPtr& model);
  void remove(const ModelPtr& model);
  void end(const std::vector<ModelPtr>& models);
  void load_now(const ModelPtr& model, Done done);
  void unload_now(const ModelPtr& model, Done done);
  void sleep_now(const ModelPtr& model, Done done);

  void wanted(const ModelPtr& model);
  void queue_load(const ModelPtr& model);
  void measure_again(Load& load);
  void call_off(const ModelPtr& model, const Error& error);
  void advance();
  void begin_fetches();
  void begin_fetch(const LoadPtr& load);
  void end_fetch(const LoadPtr& load, const FetchPtr& fetch, const Status& outcome);
  bool loader_in_use(const ModelLoader& loader) const;
  std::vector<ModelPtr> evictable_for(const ModelPtr& beneficiary) const;
  static std::vector<ModelPtr> by_last_use(std::vector<ModelPtr> models);
  bool evict_one(const ModelPtr& beneficiary);
  void measure(const LoadPtr& load);
  void begin_load(const LoadPtr& load, std::uint64_t bytes);
  void end_load(const LoadPtr& load, Result<Service> outcome, Account account);
  void fail_load(const LoadPtr& load, const Error& error);
  void finish_load(const LoadPtr& load);
  Service guard(const ModelPtr& model, std::shared_ptr<ModelLoader> loader, Service service, Account account);
  void watch(const ModelPtr& model, inference::ModelService& service);
  void service_failed(const ModelPtr& model, const inference::ModelService* service, const Error& error);
  enum class Reason : std::uint8_t { unloaded, replaced, evicted };
  void leave(const ModelPtr& model, std::shared_ptr<ModelLoader> loader, const Service& service, After after,
             Reason reason);
  void service_gone(const ModelPtr& model, const inference::ModelService* service,
                    const std::shared_ptr<ModelLoader>& loader, Account account);
  void give_back(const ModelPtr& model, std::list<Leaving>::iterator it, Account account, Inbox& on);
  void end_leaving(const ModelPtr& model, std::list<Leaving>::iterator it);
  bool drains(const Model& model) const;
  void drop_asleep(const ModelPtr& model);

  void set_state(Model& model, ModelState state, std::string detail = {});
  void set_waits(Model& model, bool waits);
  void count(Model& model, std::uint64_t Counts::*what);
  static std::uint64_t reserved_by(const Model& model) {
    const Account account = model.account.lock();
    return account == nullptr ? 0 : account->reserved();
  }
  // Whether it is to be loaded at retry_at.
  bool retries(const Model& model) const {
    return !ending_ && !model.retires && !model.load && !serves(model) && model.retry_at != Clock::time_point();
  }
  static bool serves(const Model& model) { return model.slot->service() != nullptr; }
  static void answer(std::vector<Done>& waiters, const Status& status);

  Error unknown(std::string_view name) const;
  static bool has_name(const Model& model, const std::string& name) {
    return model.definition.name == name ||
           std::find(model.aliases.begin(), model.aliases.end(), name) != model.aliases.end();
  }
  ModelEntry describe(const ModelPtr& of) const;

  const std::shared_ptr<MemoryBudget> budget_;
  const RegistryOptions options_;
  std::atomic<bool> stopping_{false};
  Inbox decisions_;
  Inbox loads_;
  Inbox ends_;
  std::thread decide_;
  std::thread load_;
  std::thread end_;

  mutable std::shared_mutex mutex_;
  std::vector<ModelPtr> models_;
  std::map<std::string, ModelPtr, std::less<>> by_name_;
  Counts counts_;

  // Of the deciding thread.
  std::deque<LoadPtr> load_queue_;         // in order of arrival; those that can go on do
  bool busy_ = false;                      // the loading thread is
  std::shared_ptr<ModelLoader> measured_;  // by the loading thread, now
  std::vector<FetchPtr> fetches_;
  std::function<void()> when_fetched_;  // at the end, with the last of them
  std::list<Leaving> leaving_;
  int awaited_ = 0;
  bool unsettled_ = false;  // some name waits for its new owner, or a model retires
  bool ending_ = false;     // requests are refused for good
};

// --- What other threads ask.

Error Registry::Impl::unknown(std::string_view name) const {
  std::string known;
  for (const ModelPtr& model : models_) {
    if (model->retires) continue;
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

ModelEntry Registry::Impl::describe(const ModelPtr& of) const {
  const Model& model = *of;
  ModelEntry entry;
  entry.name = model.definition.name;
  // What leads there now: a name may be on its way to another.
  for (const auto& [name, owner] : by_name_)
    if (owner == of && (name != entry.name || model.retires)) entry.aliases.push_back(name);
  entry.fallbacks = model.fallbacks;
  entry.engine = model.definition.engine;
  entry.state = model.state;
  if (model.state == ModelState::loading) entry.progress = model.progress->load();
  if (model.state == ModelState::ready) entry.progress = 1;
  entry.detail = model.fetch != nullptr && model.state == ModelState::loading ? model.fetch->doing() : model.detail;
  entry.created = model.created;
  entry.on_demand = model.definition.on_demand;
  entry.pin = model.definition.pin;
  entry.added = model.added;
  entry.retires = model.retires;
  entry.counts = model.counts;
  entry.last_load = model.last_load;
  if (const Account account = model.account.lock()) {
    entry.reserved = account->reserved();
    entry.borrowed = account->borrowed();
  }
  entry.in_use = model.slot->in_use();
  entry.waits = model.waits;
  entry.waiting = model.slot->waiting();
  entry.service = model.slot->service();
  entry.slot = model.slot;
  return entry;
}

Result<ModelEntry> Registry::Impl::entry(std::string_view name) const {
  std::shared_lock lock(mutex_);
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return unknown(name);
  return describe(it->second);
}

std::vector<std::string> Registry::Impl::fallbacks(std::string_view name) const {
  std::shared_lock lock(mutex_);
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? std::vector<std::string>{} : it->second->fallbacks;
}

std::vector<ModelEntry> Registry::Impl::list() const {
  std::shared_lock lock(mutex_);
  std::vector<ModelEntry> out;
  for (const ModelPtr& model : models_) out.push_back(describe(model));
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
  auto applied = std::make_shared<std::promise<Status>>();
  auto outcome = applied->get_future();
  auto shared = std::make_shared<std::vector<ModelDefinition>>(std::move(definitions));
  auto owed = std::make_shared<Owed>([applied](Status status) { applied->set_value(std::move(status)); });
  decisions_.push([this, shared, owed = std::move(owed)] {
    if (ending_) return;  // `owed` says so
    apply_now(std::move(*shared));
    std::exchange(owed->done, nullptr)({});
  });
  return outcome.get();
}

void Registry::Impl::add(ModelDefinition definition, Done done) {
  auto owed = std::make_shared<Owed>(std::move(done));
  decisions_.push([this, definition = std::move(definition), owed = std::move(owed)]() mutable {
    if (ending_) return;  // `owed` says so
    add_now(std::move(definition), std::exchange(owed->done, nullptr));
  });
}

void Registry::Impl::act(Action action, std::string name, Done done) {
  auto owed = std::make_shared<Owed>(std::move(done));
  decisions_.push([this, action, name = std::move(name), owed = std::move(owed)] {
    if (ending_) return;  // `owed` says so
    const auto it = by_name_.find(name);
    Done answer_to = std::exchange(owed->done, nullptr);
    if (it == by_name_.end()) return answer_to(unknown(name));
    const ModelPtr model = it->second;
    switch (action) {
      case Action::load:
        return load_now(model, std::move(answer_to));
      case Action::begin_load:
        load_now(model, {});
        return answer_to({});
      case Action::unload:
        return unload_now(model, std::move(answer_to));
      case Action::sleep:
        return sleep_now(model, std::move(answer_to));
      case Action::remove:
        unload_now(model, std::move(answer_to));
        if (model->added) end({model});
    }
  });
}

// --- The deciding thread.

void Registry::Impl::run_decisions() {
  Inbox::Job job;
  for (;;) {
    std::optional<Clock::time_point> next;
    try {
      if (job) job();
      job = nullptr;  // with what it holds
      if (!ending_) {
        if (unsettled_) {
          name_models();
          retire();
        }
        retry_loads();
        advance();
      }
      next = run_timers();
    } catch (const std::exception& fault) {
      log::error("registry", "a decision failed", {{"reason", fault.what()}});
      job = nullptr;
      next = Clock::now() + std::chrono::seconds(1);  // what is due is not forgotten
    }
    if (!decisions_.wait(next, job)) return;
  }
}

// Acts on what has become due; when the next is.
std::optional<Clock::time_point> Registry::Impl::run_timers() {
  const Clock::time_point now = Clock::now();
  std::optional<Clock::time_point> next;
  const auto at = [&next](Clock::time_point time) { next = next ? std::min(*next, time) : time; };

  for (Leaving& each : leaving_) {
    if (!each.deadline) continue;
    if (now < *each.deadline) {
      at(*each.deadline);
      continue;
    }
    each.deadline.reset();
    if (const Service service = each.alive.lock()) service->close();
  }
  for (const ModelPtr& model : models_) {
    if (auto due = model->slot->next_deadline()) {
      if (*due <= now) {
        model->slot->expire(now,
                            loading_error(model->definition.name, model->progress->load(), model->fetch != nullptr));
        due = model->slot->next_deadline();
        if (model->retires) at(now);  // it may go now
      }
      if (due) at(*due);
    }
    const auto idle = model->definition.idle_unload;
    if (model->state == ModelState::ready && !model->load && idle.count() > 0 && !model->keeps &&
        !model->definition.pin) {
      if (const Service service = model->slot->hold_if_unused(now - idle)) {
        log::info("registry", "unloading an idle model", {{"model", model->definition.name}});
        set_waits(*model, true);
        leave(model, model->definition.loader, service, After::unloaded, Reason::unloaded);
      } else {
        at(std::max(model->slot->last_used() + idle, now + std::chrono::seconds(1)));
      }
    }
    if (model->state == ModelState::failed && model->failed_at != Clock::time_point() && !ending_) {
      const Clock::time_point again = model->failed_at + options_.retry_failed_after;
      if (now >= again) {
        model->failed_at = {};
        set_waits(*model, true);
        model->slot->hold();
      } else {
        at(again);
      }
    }
    if (retries(*model)) at(std::max(now, model->retry_at));  // retry_loads comes next
  }
  return next;
}

// Loads by themselves what no request may ask for: a model that a kept name waits for, and one of the start that found
// no room.
void Registry::Impl::retry_loads() {
  const Clock::time_point now = Clock::now();
  std::vector<ModelPtr> due;
  for (const ModelPtr& model : models_) {
    const bool absent = model->state == ModelState::unloaded || model->state == ModelState::sleeping;
    const bool never_tried = model->awaited && absent && model->waits && model->retry_at == Clock::time_point();
    if (never_tried ? !model->load : retries(*model) && model->retry_at <= now) due.push_back(model);
  }
  for (const ModelPtr& model : due) {
    model->failed_at = {};
    set_waits(*model, true);
    model->slot->hold();
    queue_load(model);
  }
}

void Registry::Impl::stop() {
  stopping_ = true;
  // First the loads: one that ended later would put its service into a slot that nobody empties any more.
  loads_.close();
  load_.join();
  auto ended = std::make_shared<std::promise<void>>();
  decisions_.push([this, ended] {
    const Error error = stopped_error();
    ending_ = true;
    for (const ModelPtr& model : models_) {
      model->slot->refuse(error);
      answer(model->load_waiters, error);
      answer(model->unload_waiters, error);
    }
    for (const Leaving& each : leaving_) answer(each.model->unload_waiters, error);
    for (const LoadPtr& load : load_queue_) {
      answer(load->model->unload_waiters, error);
      load->model->load.reset();  // they hold each other
    }
    load_queue_.clear();
    if (fetches_.empty()) return ended->set_value();
    for (const FetchPtr& each : fetches_) each->stop.request_stop();
    when_fetched_ = [ended] { ended->set_value(); };
  });
  ended->get_future().wait();
  decisions_.close();
  decide_.join();
  ends_.close();
  end_.join();
}

void Registry::Impl::end_requests() {
  auto ended = std::make_shared<std::promise<void>>();
  const auto done = ended->get_future();
  decisions_.push([this, ended = std::move(ended)] {
    ending_ = true;
    for (const ModelPtr& model : models_) {
      call_off(model, stopped_error());
      if (const Service service = model->slot->refuse(stopped_error())) service->close();
    }
    for (const Leaving& each : leaving_)
      if (const Service service = each.alive.lock()) service->close();
    ended->set_value();
  });
  done.wait();
}

// --- The list of models.

void Registry::Impl::set_state(Model& model, ModelState state, std::string detail) {
  std::unique_lock lock(mutex_);
  model.state = state;
  model.detail = std::move(detail);
}

void Registry::Impl::set_waits(Model& model, bool waits) {
  std::unique_lock lock(mutex_);
  model.waits = waits;
}

void Registry::Impl::count(Model& model, std::uint64_t Counts::*what) {
  std::unique_lock lock(mutex_);
  ++(model.counts.*what);
  ++(counts_.*what);
}

void Registry::Impl::answer(std::vector<Done>& waiters, const Status& status) {
  for (Done& each : std::exchange(waiters, {}))
    if (each) each(status);
}

// What add() has brought stays, unless the list takes its name.
void Registry::Impl::apply_now(std::vector<ModelDefinition> definitions) {
  std::map<std::string, ModelPtr, std::less<>> old;
  for (const ModelPtr& model : models_) old[model->definition.name] = model;
  for (const auto& [name, model] : old) {
    const std::string& known = model->definition.name;
    const auto is_name = [&known](const ModelDefinition& each) { return each.name == known; };
    const auto is_alias = [&known](const ModelDefinition& each) {
      return std::find(each.aliases.begin(), each.aliases.end(), known) != each.aliases.end();
    };
    const bool listed = std::any_of(definitions.begin(), definitions.end(), is_name);
    const bool taken = std::any_of(definitions.begin(), definitions.end(), is_alias);
    if (listed || (model->added && !taken)) continue;
    {
      std::unique_lock lock(mutex_);
      model->retires = true;
    }
    if (!serves(*model)) continue;
    call_off(model, make_error(ErrorCode::unavailable, "The change was taken back."));
    model->next.reset();
  }
  std::vector<std::string> order;
  for (ModelDefinition& each : definitions) {
    order.push_back(each.name);
    const auto it = old.find(each.name);
    if (it == old.end()) {
      define(std::move(each), false);
    } else {
      {
        std::unique_lock lock(mutex_);
        it->second->added = it->second->retires = false;
      }
      replace(it->second, std::move(each));
    }
  }
  {
    std::unique_lock lock(mutex_);
    const auto place = [&](const ModelPtr& each) {
      return std::find(order.begin(), order.end(), each->definition.name) - order.begin();
    };
    std::stable_sort(models_.begin(), models_.end(),
                     [&](const ModelPtr& a, const ModelPtr& b) { return place(a) < place(b); });
  }
  name_models();
  retire();
  for (const ModelPtr& model : models_)
    if (model->retires)
      log::info("registry", "a model goes when the one that takes over its name is ready",
                {{"model", model->definition.name}});
}

// A name that passes to a model which is to be there but is not ready yet is kept where it is meanwhile, if a model
// serves there; else its requests wait.
void Registry::Impl::name_models() {
  std::unique_lock lock(mutex_);
  decltype(by_name_) names;
  unsettled_ = false;
  const auto name = [&](const std::string& text, const ModelPtr& model) {
    ModelPtr& owner = names[text];
    owner = model;
    const auto it = by_name_.find(text);
    const bool ready = serves(*model) && !model->next;
    if (it == by_name_.end() || it->second == model || ready || newest(*model).on_demand) return;
    const ModelPtr& before = it->second;
    if (!before->removed && !before->yields && serves(*before)) {
      owner = before;
      before->keeps = model->awaited = unsettled_ = true;
    } else if (model->state == ModelState::loading && !model->waits) {
      model->waits = true;
      model->slot->hold();
    }
  };
  for (const ModelPtr& model : models_) model->awaited = model->keeps = false;
  for (const ModelPtr& model : models_) {
    if (model->removed) continue;
    if (model->retires) {
      unsettled_ = true;
      continue;
    }
    name(model->definition.name, model);
    for (const std::string& alias : model->aliases) name(alias, model);
  }
  by_name_.swap(names);
}

// What the list does not have any more goes, unless a name is kept there, or requests wait.
void Registry::Impl::retire() {
  for (const ModelPtr& model : std::vector<ModelPtr>(models_)) {
    if (!model->retires) continue;
    const bool named =
        std::any_of(by_name_.begin(), by_name_.end(), [&](const auto& each) { return each.second == model; });
    if (!named && model->slot->waiting() == 0) remove(model);
  }
}

void Registry::Impl::add_now(ModelDefinition definition, const Done& done) {
  ModelPtr model;
  for (const ModelPtr& each : models_)
    if (!each->retires && has_name(*each, definition.name)) model = each;
  if (model == nullptr) {
    const auto goes = std::find_if(models_.begin(), models_.end(),
                                   [&](const ModelPtr& each) { return each->definition.name == definition.name; });
    if (goes == models_.end()) {
      define(std::move(definition), true);
      name_models();
      return done({});
    }
    model = *goes;  // it stays
    {
      std::unique_lock lock(mutex_);
      model->retires = false;
      model->added = true;
    }
    take_up(*model, definition);
    name_models();
  }
  const ModelDefinition& known = newest(*model);
  if (known.name == definition.name && known.fingerprint == definition.fingerprint) {
    load_now(model, {});
    return done({});
  }
  if (!model->added || known.name != definition.name) {
    return done(make_error(ErrorCode::invalid_argument,
                           "The model '" + definition.name +
                               "' is one of the configuration, with another source or other settings; it is loaded by "
                               "its name alone, or under another name.",
                           "model"));
  }
  replace(model, std::move(definition));
  done({});
}

Registry::Impl::ModelPtr Registry::Impl::define(ModelDefinition definition, bool added) {
  auto model = std::make_shared<Model>();
  const std::weak_ptr<Impl> self = weak_from_this();
  const std::weak_ptr<Model> weak = model;
  model->slot = std::make_shared<Slot>([self, weak] {
    const auto impl = self.lock();
    if (impl == nullptr) return;
    impl->decisions_.push([impl = impl.get(), weak] {
      if (const ModelPtr wanted_model = weak.lock()) impl->wanted(wanted_model);
    });
  });
  model->created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  model->added = added;
  model->waits = definition.on_demand;
  take_up(*model, definition);
  model->definition = std::move(definition);
  if (!model->waits) model->slot->refuse(loading_error(model->definition.name, 0));
  {
    std::unique_lock lock(mutex_);
    models_.push_back(model);
  }
  if (!model->definition.on_demand) queue_load(model);
  return model;
}

// What holds as soon as a list says so, whatever is loaded.
void Registry::Impl::take_up(Model& model, const ModelDefinition& definition) {
  std::unique_lock lock(mutex_);
  model.aliases = definition.aliases;
  model.fallbacks = definition.fallbacks;
  model.slot->limit_waiting(definition.max_waiting);
}

// The same model with other settings of the kind that need no loading: it keeps its loader.
void Registry::Impl::adopt(const ModelPtr& model, ModelDefinition definition) {
  const bool was_on_demand = model->definition.on_demand;
  const bool on_demand = definition.on_demand;
  // A model of the new list may need what this one has beyond its new share.
  const std::uint64_t limit = definition.loader->limit();
  model->definition.loader->set_limit(limit);
  if (const Account account = serves(*model) ? model->account.lock() : nullptr) account->lend(limit);
  definition.loader = model->definition.loader;
  model->next.reset();
  {
    std::unique_lock lock(mutex_);
    model->definition = std::move(definition);
    if (on_demand) model->waits = true;
  }
  if (was_on_demand == on_demand || serves(*model) || model->state == ModelState::failed) return;
  if (!on_demand) return queue_load(model);
  model->slot->hold();
}

void Registry::Impl::replace(const ModelPtr& model, ModelDefinition definition) {
  take_up(*model, definition);
  if (definition.on_demand) model->retry_at = {};
  // One that was called off where a model serves is of a change that was taken back.
  const bool loading =
      model->load && model->load->stage == Load::Stage::loading && !(model->load->called_off && serves(*model));
  if (loading && model->load->definition.fingerprint == definition.fingerprint) {
    model->load->definition.loader->set_limit(definition.loader->limit());
    definition.loader = model->load->definition.loader;
    if (!serves(*model) && model->definition.fingerprint == definition.fingerprint) {
      model->next.reset();
      std::unique_lock lock(mutex_);
      model->definition = definition;
      model->waits = model->waits || definition.on_demand;
    } else {
      model->next = definition;
    }
    if (!serves(*model) && model->waits) model->slot->hold();
    model->load->definition = std::move(definition);
    return;
  }
  if (!loading && model->definition.fingerprint == definition.fingerprint) {
    if (model->load && serves(*model)) {
      call_off(model, make_error(ErrorCode::unavailable, "The change was taken back."));
    } else if (model->load) {
      measure_again(*model->load);
    }
    return adopt(model, std::move(definition));
  }
  const bool on_demand = definition.on_demand;
  model->next = std::move(definition);
  if (model->load) measure_again(*model->load);
  settle(model);
  if (serves(*model) || !on_demand || model->slot->waiting() > 0) return queue_load(model);
  if (model->load) return;
  if (model->leaving == 0) set_state(*model, ModelState::unloaded);
  set_waits(*model, true);
  model->failed_at = {};
  model->slot->hold();
}

// Where nothing is there of the old definition, the next one takes its place.
void Registry::Impl::settle(const ModelPtr& model) {
  const bool loading = model->load && model->load->stage == Load::Stage::loading;
  if (!model->next || serves(*model) || loading) return;
  drop_asleep(model);
  if (model->leaving > 0) return;  // end_leaving comes back here
  std::unique_lock lock(mutex_);
  model->definition = *std::move(model->next);
  model->next.reset();
  model->waits = model->waits || model->definition.on_demand;
}

void Registry::Impl::remove(const ModelPtr& model) {
  model->removed = true;
  const Error error = make_error(ErrorCode::not_found,
                                 "The model '" + model->definition.name + "' is not served here any more.", "model");
  call_off(model, error);
  answer(model->load_waiters, error);
  drop_asleep(model);
  {
    std::unique_lock lock(mutex_);
    std::erase(models_, model);
  }
  // For requests that have found it by a name that has passed on since.
  std::set<ModelPtr> heirs;
  for (const ModelPtr& other : models_) {
    const bool heir = has_name(*other, model->definition.name) ||
                      std::any_of(model->aliases.begin(), model->aliases.end(),
                                  [&](const std::string& alias) { return has_name(*other, alias); });
    if (heir && !other->retires) heirs.insert(other);
  }
  if (heirs.size() == 1) model->slot->pass_on_to((*heirs.begin())->slot);
  if (const Service service = model->slot->refuse(error))
    leave(model, model->definition.loader, service, After::unloaded, Reason::replaced);
  if (model->leaving == 0 && !model->load) answer(model->unload_waiters, {});
}

// The models go, first from under their names, so that no request meets them on the way.
void Registry::Impl::end(const std::vector<ModelPtr>& models) {
  for (const ModelPtr& model : models) model->removed = true;
  name_models();
  for (const ModelPtr& model : models) remove(model);
}

// What a sleeping model keeps is let go.
void Registry::Impl::drop_asleep(const ModelPtr& model) {
  if (!model->asleep) return;
  const std::shared_ptr<ModelLoader>& loader = model->definition.loader;
  ++model->leaving;
  leaving_.push_back({nullptr, {}, model, loader, model->asleep->reserved(), After::unloaded, false, std::nullopt});
  if (model->state == ModelState::sleeping) set_state(*model, ModelState::unloading);
  // After what the loading thread does with it now.
  give_back(model, std::prev(leaving_.end()), std::exchange(model->asleep, nullptr),
            loader == measured_ ? loads_ : ends_);
}

// --- Loading.

void Registry::Impl::wanted(const ModelPtr& model) {
  if (model->removed || model->slot->waiting() == 0) return;
  if (!serves(*model)) queue_load(model);
}

void Registry::Impl::queue_load(const ModelPtr& model) {
  if (ending_) return;
  model->retry_at = {};
  if (model->load) {
    model->load->again = model->load->called_off;
    return;
  }
  model->load = std::make_shared<Load>(model);
  model->progress->store(0);
  // A model that is being replaced goes on serving.
  if (!serves(*model)) {
    set_state(*model, ModelState::loading);
    if (model->waits) model->slot->hold();
  }
  load_queue_.push_back(model->load);
}

void Registry::Impl::measure_again(Load& load) {
  load.need.reset();
  load.fetched = false;
  if (load.fetch != nullptr) load.fetch->stop.request_stop();
  load.stale = load.stage == Load::Stage::measuring;
}

// The load does not happen; one that is under way is thrown away when it ends.
void Registry::Impl::call_off(const ModelPtr& model, const Error& error) {
  if (!model->load) return;
  model->load->called_off = true;
  answer(model->load_waiters, error);
  if (model->load->stage == Load::Stage::loading) return;
  if (model->load->fetch != nullptr) model->load->fetch->stop.request_stop();
  std::erase(load_queue_, model->load);
  model->load.reset();
}

// Starts what has to be fetched, as far as so much may at once.
void Registry::Impl::begin_fetches() {
  if (when_fetched_) return;
  for (const LoadPtr& load : load_queue_) {
    if (fetches_.size() >= options_.max_fetches) return;
    if (load->need || load->fetched || load->fetch != nullptr || load->stage != Load::Stage::waiting) continue;
    load->definition = newest(*load->model);
    const std::shared_ptr<ModelLoader>& loader = load->definition.loader;
    const bool fetching =
        std::any_of(fetches_.begin(), fetches_.end(), [&](const FetchPtr& each) { return each->loader == loader; });
    if (loader->fetches() && !fetching && !loader_in_use(*loader)) begin_fetch(load);
  }
}

void Registry::Impl::begin_fetch(const LoadPtr& load) {
  auto fetch = std::make_shared<Fetch>();
  fetch->loader = load->definition.loader;
  fetches_.push_back(fetch);
  load->fetch = fetch;
  load->began = Clock::now();
  {
    std::unique_lock lock(mutex_);
    load->model->fetch = fetch;
  }
  const auto work = [this, load, fetch] {
    const Status outcome = contained([&]() -> Status {
      return fetch->loader->fetch(
          [&](double share, std::string what) {
            load->model->progress->store(share * kFetchShare);
            std::lock_guard lock(fetch->mutex);
            fetch->what = std::move(what);
          },
          fetch->stop.get_token());
    });
    decisions_.push([this, load, fetch, outcome] { end_fetch(load, fetch, outcome); });
  };
  try {
    fetch->thread = std::thread(work);
  } catch (const std::system_error& fault) {
    const Error outcome = make_error(ErrorCode::internal, std::string("no thread for its download: ") + fault.what());
    decisions_.push([this, load, fetch, outcome] { end_fetch(load, fetch, outcome); });
  }
}

void Registry::Impl::end_fetch(const LoadPtr& load, const FetchPtr& fetch, const Status& outcome) {
  if (fetch->thread.joinable()) fetch->thread.join();
  std::erase(fetches_, fetch);
  load->fetch.reset();
  load->times.fetch += seconds_since(load->began);
  {
    std::unique_lock lock(mutex_);
    if (load->model->fetch == fetch) load->model->fetch.reset();
  }
  if (when_fetched_) {
    if (fetches_.empty()) when_fetched_();
    return;
  }
  // One that was stopped was another definition's, or nobody wants it any more.
  if (load->called_off || fetch->stop.stop_requested()) return;
  if (!outcome) return fail_load(load, outcome.error());
  load->fetched = true;
}

bool Registry::Impl::loader_in_use(const ModelLoader& loader) const {
  return std::any_of(leaving_.begin(), leaving_.end(),
                     [&](const Leaving& each) { return each.loader.get() == &loader; });
}

// Moves the first load on that can go on: what does it need, is there room, load. Those before it that wait for room
// have a claim on what is free.
void Registry::Impl::advance() {
  begin_fetches();
  if (busy_) return;
  std::uint64_t coming = 0;  // from what is on its way out
  for (const Leaving& each : leaving_) coming += each.reserved;
  std::uint64_t claimed = 0;  // of what is free and of what comes
  for (const LoadPtr& each : load_queue_) {
    const LoadPtr load = each;  // what is called below may change the queue, and ends the loop
    const ModelPtr model = load->model;
    if (!load->need) {
      load->definition = newest(*model);
      const ModelLoader& loader = *load->definition.loader;
      if (loader_in_use(loader) || load->fetch != nullptr || (loader.fetches() && !load->fetched)) continue;
      return measure(load);
    }
    const std::uint64_t held = model->asleep ? model->asleep->reserved() : 0;
    const std::uint64_t least = std::max(load->need->least, held) - held;
    const std::uint64_t wanted = std::max(load->need->wanted, held) - held;
    const std::uint64_t unreserved = budget_->unreserved();
    const std::uint64_t room = unreserved - std::min(unreserved, claimed - std::min(claimed, coming));
    const std::uint64_t soon = unreserved + coming - std::min(unreserved + coming, claimed);
    const bool released = !loader_in_use(*load->definition.loader);
    if (room >= least && released) return begin_load(load, std::min(room, wanted));
    claimed += least;
    if (awaited_ > 0 || !released) continue;  // end_leaving comes back here
    // Nothing goes in vain, nor for a load that nobody waits for where room comes anyway.
    const bool urgent = model->slot->waiting() > 0 || !model->load_waiters.empty();
    if (!urgent && soon >= least) continue;
    std::uint64_t others = 0;  // what could be evicted
    const std::vector<ModelPtr> evictable = evictable_for(model);
    for (const ModelPtr& other : evictable) others += reserved_by(*other);
    if (room + others >= least && others > 0) {
      evict_one(model);
      return advance();
    }
    const std::uint64_t own = serves(*model) ? reserved_by(*model) : 0;
    if (own > 0 && room + others + own >= least) {
      // No room for both: the old one goes first, and requests wait for the new one.
      set_waits(*model, true);
      model->former = model->definition;
      leave(model, model->definition.loader, model->slot->hold(), After::unloaded, Reason::replaced);
      return advance();
    }
    if (!leaving_.empty() && soon + others + own >= least) continue;
    std::vector<ModelPtr> retiring;  // as many as it takes of those that requests use
    std::uint64_t theirs = 0;
    for (const ModelPtr& other : by_last_use(models_)) {
      if (!other->retires || other == model || reserved_by(*other) == 0) continue;
      // Asked anew, it might be in use no more, and counted nowhere.
      if (!serves(*other) || std::find(evictable.begin(), evictable.end(), other) != evictable.end()) continue;
      if (soon + others + own + theirs >= least) break;
      retiring.push_back(other);
      theirs += reserved_by(*other);
    }
    if (!retiring.empty() && soon + others + own + theirs >= least) {
      end(retiring);
      return advance();
    }
    if (model->leaving > 0) continue;
    std::string list;
    for (const MemoryBudget::Use& use : budget_->uses())
      if (use.reserved > 0) list += (list.empty() ? "" : ", ") + ("'" + use.owner + "' " + format_bytes(use.reserved));
    Error error =
        make_error(ErrorCode::unavailable, "The model '" + load->definition.name + "' needs " +
                                               format_bytes(load->need->least) + ", but of the memory budget of " +
                                               format_bytes(budget_->total()) + " only " + format_bytes(room + held) +
                                               " is free" + (list.empty() ? "" : " (in use: " + list + ")") + ".");
    error.retry_after_s = load->need->least <= budget_->total() ? kRetryForRoomSeconds : 0;  // 0: never
    fail_load(load, error);
    return advance();
  }
}

// First the one that was used longest ago, last those that keep names for others.
std::vector<Registry::Impl::ModelPtr> Registry::Impl::by_last_use(std::vector<ModelPtr> models) {
  std::vector<std::pair<std::pair<bool, Clock::time_point>, ModelPtr>> keyed;  // a time may change meanwhile
  for (ModelPtr& model : models)
    keyed.emplace_back(std::pair(model->keeps, model->slot->last_used()), std::move(model));
  std::stable_sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::transform(keyed.begin(), keyed.end(), models.begin(), [](auto& each) { return std::move(each.second); });
  return models;
}

// The models that nobody uses. Those of remote engines would free nothing.
std::vector<Registry::Impl::ModelPtr> Registry::Impl::evictable_for(const ModelPtr& beneficiary) const {
  std::vector<ModelPtr> out;
  for (const ModelPtr& model : models_) {
    const bool unused = model->asleep != nullptr || (model->state == ModelState::ready && !model->slot->in_use());
    if (unused && !model->definition.pin && model != beneficiary && reserved_by(*model) > 0) out.push_back(model);
  }
  return by_last_use(std::move(out));
}

bool Registry::Impl::evict_one(const ModelPtr& beneficiary) {
  for (const ModelPtr& model : evictable_for(beneficiary)) {
    if (model->asleep) {
      drop_asleep(model);
    } else if (model->retires) {
      end({model});
    } else {
      // First from under the names that it keeps: a request that came by one would have it loaded again.
      model->yields = model->keeps;
      if (model->yields) name_models();
      const Service service = model->slot->hold_if_unused(Clock::now());
      model->yields = false;
      if (service == nullptr) continue;
      set_waits(*model, true);
      leave(model, model->definition.loader, service, After::unloaded, Reason::evicted);
    }
    log::info("registry", "evicting a model",
              {{"model", model->definition.name}, {"for", beneficiary->definition.name}});
    count(*model, &Counts::evictions);
    return true;
  }
  return false;
}

void Registry::Impl::measure(const LoadPtr& load) {
  busy_ = true;
  load->stage = Load::Stage::measuring;
  measured_ = load->definition.loader;
  loads_.push([this, load, loader = measured_]() mutable {
    const Result<ModelLoader::Need> need = contained([&] { return loader->need(); });
    loader.reset();
    decisions_.push([this, load, need] {
      busy_ = false;
      measured_.reset();
      load->stage = Load::Stage::waiting;
      const bool counts = !load->called_off && !std::exchange(load->stale, false);
      if (counts && !need) return fail_load(load, need.error());
      if (counts) load->need = *need;
    });
  });
}

void Registry::Impl::begin_load(const LoadPtr& load, std::uint64_t bytes) {
  busy_ = true;
  load->stage = Load::Stage::loading;
  load->began = Clock::now();
  load->times.wait = seconds_since(load->queued) - load->times.fetch;
  loads_.push([this, load = LoadPtr(load), bytes, definition = load->definition,
               account = std::move(load->model->asleep), progress = load->model->progress]() mutable {
    Status reserved;
    if (account != nullptr) {
      reserved = budget_->grow(*account, bytes, options_.reclaim_timeout);
    } else if (auto fresh = budget_->reserve(definition.name, bytes, options_.reclaim_timeout); fresh.ok()) {
      account = *std::move(fresh);
    } else {
      reserved = std::move(fresh).error();
    }
    Result<Service> outcome = Service();
    if (reserved.ok()) {
      const double fetched = progress->load();
      outcome = contained([&] {
        return definition.loader->load(account, [&](double share) {
          if (load->called_off || stopping_) throw std::runtime_error("The load was called off.");
          progress->store(fetched + (1 - fetched) * share);
        });
      });
    } else {
      Error error = std::move(reserved).error();
      error.retry_after_s = kRetryForRoomSeconds;
      outcome = std::move(error);
    }
    if (!outcome) definition.loader->release();  // before its memory counts as free
    // Everything goes along: a reference that stayed here would keep the memory reserved.
    definition = {};
    decisions_.push(
        [this, load = std::move(load), outcome = std::move(outcome), account = std::move(account)]() mutable {
          end_load(load, std::move(outcome), std::move(account));
        });
  });
}

void Registry::Impl::end_load(const LoadPtr& load, Result<Service> outcome, Account account) {
  busy_ = false;
  const ModelPtr model = load->model;
  const std::shared_ptr<ModelLoader> loader = load->definition.loader;
  if (!outcome) {
    if (account != nullptr) account->close();
    return fail_load(load, outcome.error());
  }
  Service service = guard(model, loader, *std::move(outcome), account);
  const Service old = model->slot->service();
  // The change was taken back while it loaded.
  const bool reverted =
      old != nullptr && model->next && model->next->fingerprint == model->definition.fingerprint && !model->removed;
  if (reverted) adopt(model, *std::move(model->next));
  if (model->removed || load->called_off || reverted) {
    leave(model, loader, service, After::unloaded, Reason::unloaded);
    if (reverted)
      answer(model->load_waiters, {});
    else if (!load->again)
      answer(model->load_waiters, make_error(ErrorCode::unavailable, "The load was called off."));
    return finish_load(load);
  }
  const std::shared_ptr<ModelLoader> old_loader = model->definition.loader;
  {
    std::unique_lock lock(mutex_);
    model->definition = load->definition;
    model->state = ModelState::ready;
    model->detail = std::exchange(model->note, {});
    model->account = account;
    model->waits = model->definition.on_demand;
    model->last_load = load->times;
    model->last_load.load = seconds_since(load->began);
  }
  count(*model, &Counts::loads);
  model->former.reset();
  model->failed_at = model->retry_at = {};
  model->retries = 0;
  if (model->next && model->next->fingerprint == model->definition.fingerprint) model->next.reset();
  inference::ModelService& opened = *service;
  model->slot->open(std::move(service));
  watch(model, opened);
  account->lend(loader->limit());  // a plan that came meanwhile may leave it less
  account.reset();
  if (old != nullptr) leave(model, old_loader, old, After::unloaded, Reason::replaced);
  answer(model->load_waiters, {});
  finish_load(load);
}

void Registry::Impl::fail_load(const LoadPtr& load, const Error& error) {
  const ModelPtr model = load->model;
  const std::string name = model->definition.name;
  const bool still_serves = serves(*model);
  if (load->called_off) {
    if (!model->removed && !still_serves && model->leaving == 0) set_state(*model, ModelState::unloaded);
    if (!load->again) answer(model->load_waiters, error);
    if (model->leaving == 0) answer(model->unload_waiters, {});
    return finish_load(load);
  }
  const bool no_room = error.code == ErrorCode::unavailable && error.retry_after_s > 0;
  const log::Level level = no_room ? log::Level::warn : log::Level::error;
  if (log::enabled(level))
    log::write(level, "registry", "a model failed to load", {{"model", name}, {"reason", error.message}});
  count(*model, &Counts::failures);
  if (model->next && model->next->fingerprint == load->definition.fingerprint) {
    model->next.reset();
  } else if (model->next && still_serves && model->next->fingerprint == model->definition.fingerprint) {
    adopt(model, *std::move(model->next));
  }
  if (model->removed) {
    // Nobody is left to be told.
  } else if (still_serves) {
    // What could not be replaced goes on as it was.
    set_state(*model, ModelState::ready, error.message);
  } else if (model->former && !model->next) {
    log::warn("registry", "the model as it was before is loaded again", {{"model", name}});
    model->note = "Its change failed: " + error.message;
    model->next = std::exchange(model->former, std::nullopt);
  } else {
    {
      std::unique_lock lock(mutex_);
      // What found no room may find some later: the next request tries again.
      const ModelState kept = model->asleep ? ModelState::sleeping : ModelState::unloaded;
      model->state = no_room ? kept : ModelState::failed;
      model->detail = error.message;
      model->definition = load->definition;
      model->waits = model->waits || no_room;
    }
    model->failed_at = no_room ? Clock::time_point() : Clock::now();
    if (model->awaited || (no_room && !model->asleep && !model->definition.on_demand)) {
      constexpr int kMostDoublings = 6;
      model->retry_at = Clock::now() + options_.retry_failed_after * (1 << std::min(model->retries, kMostDoublings));
      ++model->retries;
    }
    if (no_room) {
      model->slot->hold(error);
    } else {
      model->slot->refuse(failed_error(name, error.message));
    }
  }
  answer(model->load_waiters, error);
  if (model->leaving == 0) answer(model->unload_waiters, {});
  finish_load(load);
}

void Registry::Impl::finish_load(const LoadPtr& load) {
  const ModelPtr model = load->model;
  std::erase(load_queue_, load);
  model->load.reset();
  if (!model->removed) {
    const bool changed = model->next && (serves(*model) || !model->next->on_demand);
    const bool again = load->again || (changed && !load->called_off);
    settle(model);
    if (again || (!serves(*model) && model->slot->waiting() > 0)) {
      queue_load(model);
    } else if (model->state == ModelState::loading || (model->state == ModelState::unloading && model->leaving == 0)) {
      set_state(*model, ModelState::unloaded);
      if (model->waits && !ending_) model->slot->hold();
    }
  }
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
  std::shared_ptr<void> counted;  // by the slot; goes before the service

  static std::uint64_t reserved_by(const Service& service) {
    const Guard* guard = std::get_deleter<Guard>(service);
    return guard == nullptr || guard->account == nullptr ? 0 : guard->account->reserved();
  }

  void operator()(inference::ModelService*) {
    // Everything moves along: what stayed here would keep the memory reserved a moment longer.
    if (const auto owner = impl.lock()) {
      owner->ends_.push([impl = owner.get(), guard = std::move(*this)]() mutable {
        const inference::ModelService* const raw = guard.service.get();
        guard.counted.reset();
        guard.service.reset();
        impl->decisions_.push([impl, raw, guard = std::move(guard)]() mutable {
          impl->service_gone(guard.model, raw, guard.loader, std::move(guard.account));
        });
      });
      return;
    }
    // Whoever still looks for the service through a weak reference keeps this object, and must not keep these.
    counted.reset();
    service.reset();
    account.reset();
    model.reset();
  }
};

Service Registry::Impl::guard(const ModelPtr& model, std::shared_ptr<ModelLoader> loader, Service service,
                              Account account) {
  inference::ModelService* raw = service.get();
  return {raw, Guard{weak_from_this(), model, std::move(loader), budget_, std::move(account), std::move(service),
                     model->slot->count(*raw)}};
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
  const Service failed = model->slot->refuse(ended_error(name, error.message));
  leave(model, model->definition.loader, failed, After::unloaded, Reason::unloaded);
  count(*model, &Counts::failures);
  // A change of it that is on its way replaces it.
  if (model->load) return set_state(*model, ModelState::loading, error.message);
  model->failed_at = Clock::now();
  set_state(*model, ModelState::failed, error.message);
}

// The service has left the slot; the model drains, unless another one serves.
void Registry::Impl::leave(const ModelPtr& model, std::shared_ptr<ModelLoader> loader, const Service& service,
                           After after, Reason reason) {
  const auto patience = reason == Reason::replaced ? options_.replace_timeout : options_.drain_timeout;
  ++model->leaving;
  // Nothing keeps it: its memory comes at once.
  const bool at_once = reason == Reason::evicted || service.use_count() == 1;
  if (at_once) ++awaited_;
  std::optional<Clock::time_point> deadline;
  if (patience.count() > 0 || reason != Reason::replaced) deadline = Clock::now() + patience;
  leaving_.push_back(
      {service.get(), service, model, std::move(loader), Guard::reserved_by(service), after, at_once, deadline});
  if (!serves(*model)) set_state(*model, ModelState::draining);
}

void Registry::Impl::service_gone(const ModelPtr& model, const inference::ModelService* service,
                                  const std::shared_ptr<ModelLoader>& loader, Account account) {
  const auto it =
      std::find_if(leaving_.begin(), leaving_.end(), [&](const Leaving& each) { return each.service == service; });
  if (it == leaving_.end()) return;  // everything ends
  count(*model, &Counts::unloads);
  it->service = nullptr;  // the address may become another's
  if (it->after == After::sleeping && !model->removed && !model->next && !serves(*model) &&
      loader == model->definition.loader) {
    account->give_back(account->borrowed());
    account->shrink(std::min(account->reserved(), loader->kept_asleep()));
    model->asleep = std::move(account);
    it->reserved = 0;
    if (!model->load) set_state(*model, ModelState::sleeping);
    return ends_.push([this, model, it] {
      ::malloc_trim(0);
      decisions_.push([this, model, it] { end_leaving(model, it); });
    });
  }
  if (model->state == ModelState::draining && !drains(*model)) set_state(*model, ModelState::unloading);
  give_back(model, it, std::move(account), ends_);
}

// Whether requests of its run that keep a service which has left the slot.
bool Registry::Impl::drains(const Model& model) const {
  return std::any_of(leaving_.begin(), leaving_.end(),
                     [&](const Leaving& each) { return each.model.get() == &model && each.service != nullptr; });
}

// What is left is memory. Loads wait for it; unmapping takes time by the size of the model, on the thread of `on`.
void Registry::Impl::give_back(const ModelPtr& model, std::list<Leaving>::iterator it, Account account, Inbox& on) {
  if (!std::exchange(it->awaited, true)) ++awaited_;
  on.push([this, model, it, loader = it->loader, account = std::move(account)]() mutable {
    loader->release();
    ::malloc_trim(0);  // what the threads' heaps keep would add up over many loads
    decisions_.push([this, model, it, account = std::move(account)]() mutable {
      account->close();
      end_leaving(model, it);
    });
  });
}

void Registry::Impl::end_leaving(const ModelPtr& model, std::list<Leaving>::iterator it) {
  if (it->awaited) --awaited_;
  --model->leaving;
  leaving_.erase(it);
  const bool was_going = model->state == ModelState::draining || model->state == ModelState::unloading;
  if (was_going && model->leaving == 0)
    set_state(*model, !model->load              ? ModelState::unloaded
                      : model->load->called_off ? ModelState::unloading
                                                : ModelState::loading);
  if (model->leaving == 0 && !(model->load && model->load->called_off)) answer(model->unload_waiters, {});
  if (!model->removed) {
    settle(model);
    // A request may have come for it meanwhile.
    if (!serves(*model) && model->slot->waiting() > 0) queue_load(model);
  }
}

// --- Operators.

void Registry::Impl::load_now(const ModelPtr& model, Done done) {
  model->load_waiters.push_back(std::move(done));
  const bool loads = model->load && (!model->load->called_off || model->load->again);
  if (!loads && serves(*model)) return answer(model->load_waiters, {});
  // One that is on its way already goes on refusing or holding requests as it did.
  if (!serves(*model) && (!model->load || model->load->called_off)) {
    set_waits(*model, true);
    model->failed_at = {};
    model->slot->hold();
  }
  model->retries = 0;
  queue_load(model);
}

void Registry::Impl::unload_now(const ModelPtr& model, Done done) {
  model->unload_waiters.push_back(std::move(done));
  const Error error = unloaded_error(model->definition.name);
  call_off(model, error);
  model->former.reset();
  model->failed_at = model->retry_at = {};
  set_waits(*model, model->definition.on_demand);
  const Service service = model->definition.on_demand ? model->slot->hold(error) : model->slot->refuse(error);
  for (Leaving& each : leaving_)
    if (each.model == model) each.after = After::unloaded;
  if (service != nullptr) return leave(model, model->definition.loader, service, After::unloaded, Reason::unloaded);
  drop_asleep(model);
  // end_leaving and end_load go on.
  if (model->leaving > 0) return set_state(*model, drains(*model) ? ModelState::draining : ModelState::unloading);
  if (model->load) return set_state(*model, ModelState::unloading);
  set_state(*model, ModelState::unloaded);
  settle(model);
  answer(model->unload_waiters, {});
}

void Registry::Impl::sleep_now(const ModelPtr& model, Done done) {
  const std::string& name = model->definition.name;
  if (model->state == ModelState::sleeping) return done({});
  if (model->state != ModelState::ready || model->load) {
    const bool soon = model->load || model->leaving > 0;
    return done(make_error(soon ? ErrorCode::unavailable : ErrorCode::invalid_argument,
                           "The model '" + name + "' is " + std::string(state_name(model->state)) +
                               ": only one that is ready can sleep."));
  }
  if (model->definition.loader->kept_asleep() == 0)
    return done(make_error(ErrorCode::unsupported, "The model '" + name + "' cannot sleep: its engine keeps nothing."));
  set_waits(*model, true);
  model->unload_waiters.push_back(std::move(done));
  leave(model, model->definition.loader, model->slot->hold(), After::sleeping, Reason::unloaded);
}

// --- Registry.

Registry::Registry(std::shared_ptr<MemoryBudget> budget, RegistryOptions options)
    : impl_(std::make_shared<Impl>(std::move(budget), options)) {
  impl_->start();
}
Registry::~Registry() { impl_->stop(); }

Status Registry::apply(std::vector<ModelDefinition> definitions) { return impl_->apply(std::move(definitions)); }
void Registry::add(ModelDefinition definition, Done done) { impl_->add(std::move(definition), std::move(done)); }
void Registry::load(std::string_view name, Done done) {
  impl_->act(Impl::Action::load, std::string(name), std::move(done));
}
void Registry::begin_load(std::string_view name, Done done) {
  impl_->act(Impl::Action::begin_load, std::string(name), std::move(done));
}
void Registry::unload(std::string_view name, Done done) {
  impl_->act(Impl::Action::unload, std::string(name), std::move(done));
}
void Registry::sleep(std::string_view name, Done done) {
  impl_->act(Impl::Action::sleep, std::string(name), std::move(done));
}
void Registry::end_requests() { impl_->end_requests(); }
void Registry::remove(std::string_view name, Done done) {
  impl_->act(Impl::Action::remove, std::string(name), std::move(done));
}
Result<Service> Registry::find(std::string_view name) const { return impl_->find(name); }
Result<ModelEntry> Registry::entry(std::string_view name) const { return impl_->entry(name); }
std::vector<std::string> Registry::fallbacks(std::string_view name) const { return impl_->fallbacks(name); }
std::vector<ModelEntry> Registry::list() const { return impl_->list(); }
Counts Registry::counts() const { return impl_->counts(); }
const MemoryBudget& Registry::budget() const { return impl_->budget(); }

}  // namespace xgen::registry
