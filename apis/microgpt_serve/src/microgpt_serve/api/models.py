"""The routes of OpenAI's interface that list the served models."""

from starlette.requests import Request

from microgpt_serve.api.generation import served_model
from microgpt_serve.api.openai_schemas import Model, ModelList

__all__ = ["list_models", "show_model"]


async def list_models(request: Request) -> ModelList:
    """Return the list of models, the default first."""
    return ModelList([Model(each.id, each.created) for each in request.app.state.models])


async def show_model(request: Request) -> Model:
    """Return one model."""
    served = served_model(request, request.path_params["model"])
    return Model(served.id, served.created)
